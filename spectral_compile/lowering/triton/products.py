"""The spectral:: products on a GPU: tensors in and out of the Triton kernels.

Nothing here waits for the device or reads a number back, so that all of it can be part of a CUDA graph.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton.multiply import MULTIPLY, fits, multiply_grouped, multiply_ragged_k
from spectral_compile.lowering.triton.operands import low_rank, operand
from spectral_compile.ops import scaled_grouped_mm as scaled_grouped_mm_op
from spectral_compile.ops import scaled_mm as scaled_mm_op
from spectral_compile.ops.library import copy_into, implement


def scaled_mm(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scale: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scale: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    a_k_last: bool,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
    *,
    out: tuple[Tensor],
) -> None:
    """spectral::scaled_mm: [m, n] in out_dtype; fp32 sums, in another order than the reference's.

    In bf16 where the carrier is not for such operands: see `multiply.fits`.
    """
    if carrier == "fp32" or a_format not in FORMATS or b_format not in FORMATS:
        stored: Any = (a_codes, a_scales, a_tensor_scale, b_codes, b_scales, b_tensor_scale, left, right)
        how: Any = (m, n, k, a_k_last, b_k_last, a_format, b_format, carrier, out_dtype)
        return copy_into(out, scaled_mm_op.scaled_mm(*stored, *how))
    if m == 0 or n == 0:
        return None
    a = operand(a_codes, a_scales, a_tensor_scale, a_format, a_k_last)
    b = operand(b_codes, b_scales, b_tensor_scale, b_format, b_k_last)
    with on_device(out[0]):
        MULTIPLY[carrier if fits(carrier, a, b) else "bf16"](a, b, low_rank(left, right), (m, n, k), out[0])
    return None


def scaled_grouped_mm(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scales: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scales: Tensor,
    offsets: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    block: int,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
    *,
    out: tuple[Tensor],
) -> None:
    """spectral::scaled_grouped_mm, whatever the carrier but for "fp32": products in bf16, sums in fp32."""
    if carrier == "fp32" or a_format not in FORMATS or b_format not in FORMATS:
        stored: Any = (a_codes, a_scales, a_tensor_scales, b_codes, b_scales, b_tensor_scales, offsets, left, right)
        how: Any = (m, n, k, block, b_k_last, a_format, b_format, carrier, out_dtype)
        return copy_into(out, scaled_grouped_mm_op.scaled_grouped_mm(*stored, *how))
    if out[0].numel() == 0:
        return None
    a, offsets = operand(a_codes, a_scales, a_tensor_scales, a_format, True), offsets.to(torch.int32)
    with on_device(out[0]):
        if block:
            b = operand(b_codes, b_scales, b_tensor_scales, b_format, True)
            multiply_ragged_k(a, b, offsets, (left, right), block, k, out[0])
        else:
            stack = operand(b_codes, b_scales, b_tensor_scales, b_format, b_k_last)
            multiply_grouped(a, stack, offsets, (left, right), (m, n, k), out[0])
    return None


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors' own."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def register() -> None:
    """Put these functions behind the operators on CUDA devices."""
    for kernel in (scaled_mm, scaled_grouped_mm):
        implement(kernel.__name__, kernel, "CUDA")
