"""The spectral:: products on a GPU: tensors in and out of the Triton kernels.

Nothing here waits for the device or reads a number back, so that all of it can be part of a CUDA graph.
"""

import contextlib
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton.configs import Config, choose
from spectral_compile.lowering.triton.epilogue import finish_kernel
from spectral_compile.lowering.triton.matmul import bf16_kernel, carry_kernel
from spectral_compile.ops import dequantize as dequantize_op
from spectral_compile.ops import round as round_op
from spectral_compile.ops import scaled_mm as scaled_mm_op
from spectral_compile.ops.library import copy_into, implement


class Operand(NamedTuple):
    """A quantised matrix as it lies, [rows, cols] with blocks along cols, of which `rows` or `cols` are k.

    codes and scales are bytes, contiguous along cols. block, tile_rows: a block's extents.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    block: int
    tile_rows: int
    k_last: bool


class LowRank(NamedTuple):
    """left [m, rank] (outer) right [rank, n], contiguous; left absent means ones. Rank 0: nothing."""

    left: Tensor | None
    right: Tensor | None
    rank: int


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
    """spectral::scaled_mm: [m, n] in out_dtype; fp32 sums, in another order than the reference's."""
    if carrier == "fp32" or a_format not in FORMATS or b_format not in FORMATS:
        stored: Any = (a_codes, a_scales, a_tensor_scale, b_codes, b_scales, b_tensor_scale, left, right)
        how: Any = (m, n, k, a_k_last, b_k_last, a_format, b_format, carrier, out_dtype)
        return copy_into(out, scaled_mm_op.scaled_mm(*stored, *how))
    if m == 0 or n == 0:
        return None
    a = operand(a_codes, a_scales, a_tensor_scale, a_format, a_k_last)
    b = operand(b_codes, b_scales, b_tensor_scale, b_format, b_k_last)
    with on_device(out[0]):
        multiply_bf16(a, b, low_rank(left, right), (m, n, k), out[0])
    return None


def multiply_bf16(a: Operand, b: Operand, term: LowRank, shape: tuple[int, int, int], out: Tensor) -> None:
    """The carrier "bf16"."""
    m, n, k = shape
    config = choose("bf16", capability(out), m, n)
    if config.how == "carry":
        return _multiply_carried(a, b, term, shape, out)
    bf16_kernel[grid(config, m, n)](
        *(a.codes, a.scales, b.codes, b.scales, out, m, n, k),
        *(a.codes.stride(0), a.scales.stride(0), b.codes.stride(0), b.scales.stride(0)),
        *epilogue_arguments(a, b, term),
        *(a.k_last, b.k_last, a.block, b.block, a.tile_rows, b.tile_rows, term.rank, term.left is not None),
        **config.whole(m, n, k),
        OPERANDS=tl.bfloat16 if out.is_cuda else tl.float32,
        **config.tile(),
        **config.launch(),
    )
    return None


def _multiply_carried(a: Operand, b: Operand, term: LowRank, shape: tuple[int, int, int], out: Tensor) -> None:
    """By cuBLAS, from values in memory. Its sums come in bf16 where the result does: one rounding more, relative to
    the product before the low-rank term; else in fp32.
    """
    m, n, k = shape
    a_values, b_values = (
        carried(x, *((size, k) if x.k_last else (k, size)), torch.bfloat16) for x, size in ((a, m), (b, n))
    )
    matrices = a_values if a.k_last else a_values.t(), b_values.t() if b.k_last else b_values
    if out.dtype == torch.bfloat16:
        product = torch.mm(*matrices, out=out)
    elif out.is_cuda:
        product = torch.mm(*matrices, out_dtype=torch.float32)
    else:  # the interpreter's
        product = torch.mm(*(matrix.float() for matrix in matrices))
    finish(product, a, b, term, out)


def finish(product: Tensor, a: Operand, b: Operand, term: LowRank, out: Tensor) -> None:
    """The epilogue alone."""
    m, n = out.shape
    finish_kernel[triton.cdiv(m, 32), triton.cdiv(n, 128)](
        *(product, out, m, n), *epilogue_arguments(a, b, term), term.rank, term.left is not None, 32, 128
    )


def carried(x: Operand, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """[rows, cols] in dtype: code * block scale."""
    values = x.codes.new_empty((rows, cols), dtype=dtype)
    if values.numel():
        strides = x.codes.stride(0), x.scales.stride(0)
        carry_kernel[triton.cdiv(rows, 32), triton.cdiv(cols, 128)](
            x.codes, x.scales, values, rows, cols, *strides, x.block, x.tile_rows, 32, 128
        )
    return values


def carry(
    codes: Tensor, scales: Tensor, format: str, rows: int, cols: int, dtype: torch.dtype, *, out: tuple[Tensor]
) -> None:
    """spectral::carry: [rows, cols] in dtype, equal to the reference's."""
    if format not in FORMATS:
        return copy_into(out, round_op.carry(codes, scales, format, rows, cols, dtype))
    with on_device(codes):
        out[0].copy_(carried(operand(codes, scales, scales, format, True), rows, cols, dtype))
    return None


def dequantize(
    codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, rows: int, cols: int, *, out: tuple[Tensor]
) -> None:
    """spectral::dequantize: fp32 [rows, cols], equal to the reference's."""
    if format not in FORMATS:
        return copy_into(out, dequantize_op.dequantize(codes, scales, tensor_scale, format, rows, cols))
    with on_device(codes):
        values = carried(operand(codes, scales, tensor_scale, format, True), rows, cols, torch.float32)
        out[0].copy_(values if FORMATS[format].tensor_scale is None else values * tensor_scale)
    return None


def operand(codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, k_last: bool) -> Operand:
    """As the kernels read it."""
    block = FORMATS[format].block
    tile_rows = 1 if scales.shape[0] == codes.shape[0] else block
    return Operand(_rows(codes), _rows(scales.view(torch.uint8)), tensor_scale, block, tile_rows, k_last)


def low_rank(left: Tensor | None, right: Tensor | None) -> LowRank:
    """As the kernels read it."""
    if right is None:
        return LowRank(None, None, 0)
    if right.dim() == 1:
        return LowRank(None if left is None else _rows(left[:, None]), _rows(right[None]), 1)
    assert left is not None
    return LowRank(_rows(left), _rows(right), right.shape[0])


def epilogue_arguments(a: Operand, b: Operand, term: LowRank) -> tuple[Any, ...]:
    """Tensor scales and the low-rank term; what is absent is not read, but a pointer to something."""
    left = a.tensor_scale if term.left is None else term.left
    right = a.tensor_scale if term.right is None else term.right
    strides = 0 if term.left is None else left.stride(0), 0 if term.right is None else right.stride(0)
    return a.tensor_scale, b.tensor_scale, left, right, *strides


def grid(config: Config, m: int, n: int) -> tuple[int]:
    """A program for each tile."""
    return (triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n),)


def capability(x: Tensor) -> tuple[int, int]:
    """Of the GPU that holds a tensor; that of none for the interpreter."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors' own."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _rows(x: Tensor) -> Tensor:
    """Contiguous along the last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def register() -> None:
    """Put these functions behind the operators on CUDA devices."""
    for kernel in (dequantize, carry, scaled_mm):
        implement(kernel.__name__, kernel, "CUDA")
