"""The spectral:: operators on the CPU: tensors in and out of the C++ kernels; the reference without them."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.cpu.build import library
from spectral_compile.lowering.cpu.quantizers import KINDS, amax, quantize, round
from spectral_compile.lowering.cpu.tensors import DTYPES, fp32, pointer, readable, threads
from spectral_compile.ops import dequantize as dequantize_op
from spectral_compile.ops import product as product_op
from spectral_compile.ops import round as round_op
from spectral_compile.ops import scaled_mm as scaled_mm_op
from spectral_compile.ops import token_mean as token_mean_op
from spectral_compile.ops.library import copy_into, implement

_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def dequantize(
    codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, rows: int, cols: int, *, out: tuple[Tensor]
) -> None:
    """spectral::dequantize: fp32 [rows, cols], equal to the reference's."""
    kernels = library()
    if kernels is None or format not in KINDS:
        return copy_into(out, dequantize_op.dequantize(codes, scales, tensor_scale, format, rows, cols))
    return _fill(kernels, codes, scales, format, tensor_scale.item(), out[0])


def carry(
    codes: Tensor, scales: Tensor, format: str, rows: int, cols: int, dtype: torch.dtype, *, out: tuple[Tensor]
) -> None:
    """spectral::carry: [rows, cols] in dtype, equal to the reference's."""
    kernels = library()
    if kernels is None or format not in KINDS:
        return copy_into(out, round_op.carry(codes, scales, format, rows, cols, dtype))
    return _fill(kernels, codes, scales, format, 1.0, out[0])


def token_mean(x: Tensor, min_rows: int, *, out: tuple[Tensor]) -> None:
    """spectral::token_mean: [features], fp32."""
    kernels = library()
    if kernels is None or x.dtype not in _FLOATS:
        return copy_into(out, token_mean_op.token_mean(x, min_rows))
    _column_mean(kernels, x, min_rows, mean=out[0])
    return None


def token_mean_nonzero(x: Tensor, min_rows: int, *, out: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """spectral::token_mean_nonzero: mean [features], rows [tokens], total and common mean [features]; one read of x."""
    kernels = library()
    if kernels is None or x.dtype not in _FLOATS:
        return copy_into(out, token_mean_op.token_mean_nonzero(x, min_rows))
    _column_mean(kernels, x, min_rows, *out)
    return None


def token_mean_amax(x: Tensor, min_rows: int, *, out: tuple[Tensor, Tensor]) -> None:
    """spectral::token_mean_amax: mean [features] and amax []; one read of x, but where x is not finite."""
    kernels = library()
    if kernels is None or x.dtype not in _FLOATS:
        return copy_into(out, token_mean_op.token_mean_amax(x, min_rows))
    mean, largest = out
    if not _column_mean(kernels, x, min_rows, mean=mean, amax=largest):
        amax(x, mean, None, out=(largest,))
    return None


def token_mean_nonzero_amax(
    x: Tensor, min_rows: int, *, out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
) -> None:
    """spectral::token_mean_nonzero_amax: as token_mean_nonzero, and both amax []; one read of x, as above."""
    kernels = library()
    if kernels is None or x.dtype not in _FLOATS:
        return copy_into(out, token_mean_op.token_mean_nonzero_amax(x, min_rows))
    if not _column_mean(kernels, x, min_rows, *out):
        mean, rows, _, common, largest, largest_common = out
        amax(x, mean, rows, out=(largest,))
        amax(x, common, None, out=(largest_common,))
    return None


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
    """spectral::scaled_mm: [m, n] in out_dtype; sums are fp32, in another order than the reference's.

    torch's bf16 product on a CPU rounds its scaled sums to bf16. Where a low-rank term comes on top, that is one
    rounding more; any result wider than bf16 is computed with fp32 products instead, whatever the carrier. So is a
    product with an "identity" operand that bf16 cannot hold.
    """
    kernels = library()
    if kernels is None or (a_format not in KINDS and b_format not in KINDS):
        stored: Any = (a_codes, a_scales, a_tensor_scale, b_codes, b_scales, b_tensor_scale, left, right)
        how: Any = (m, n, k, a_k_last, b_k_last, a_format, b_format, carrier, out_dtype)
        return copy_into(out, scaled_mm_op.scaled_mm(*stored, *how))
    narrow = all(f in KINDS or c.dtype == torch.bfloat16 for f, c in ((a_format, a_codes), (b_format, b_codes)))
    dtype = torch.bfloat16 if narrow and carrier == "bf16" and out_dtype == torch.bfloat16 else torch.float32
    a = _operand(kernels, a_codes, a_scales, a_format, *((m, k) if a_k_last else (k, m)), dtype)
    b = _operand(kernels, b_codes, b_scales, b_format, *((n, k) if b_k_last else (k, n)), dtype)
    matrices = (a if a_k_last else a.t(), b.t() if b_k_last else b)
    return _multiply(kernels, *matrices, a_tensor_scale, b_tensor_scale, left, right, out[0])


def product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype, *, out: tuple[Tensor]
) -> None:
    """spectral::product: [m, n] in out_dtype, with the sums of torch's own product."""
    if (kernels := library()) is None:
        return copy_into(out, product_op.product(a, b, a_scale, b_scale, out_dtype))
    return _multiply(kernels, a, b, a_scale, b_scale, None, None, out[0])


def product_plus_row(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, right: Tensor, out_dtype: torch.dtype, *, out: tuple[Tensor]
) -> None:
    """spectral::product_plus_row, likewise."""
    if (kernels := library()) is None:
        return copy_into(out, product_op.product_plus_row(a, b, a_scale, b_scale, right, out_dtype))
    return _multiply(kernels, a, b, a_scale, b_scale, None, right, out[0])


def product_plus_outer(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    left: Tensor,
    right: Tensor,
    out_dtype: torch.dtype,
    *,
    out: tuple[Tensor],
) -> None:
    """spectral::product_plus_outer, likewise."""
    if (kernels := library()) is None:
        return copy_into(out, product_op.product_plus_outer(a, b, a_scale, b_scale, left, right, out_dtype))
    return _multiply(kernels, a, b, a_scale, b_scale, left, right, out[0])


def _multiply(
    kernels: ctypes.CDLL,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    out: Tensor,
) -> None:
    """a @ b, scaled before its sums are rounded, which is free; the term is added where the product was written."""
    scales = a_scale.item(), b_scale.item()
    scale = scales[0] * scales[1]
    if _SMALLEST <= abs(scale) <= _LARGEST:
        scales = 1.0, 1.0
    else:  # or a NaN, by which an operand was poisoned: one by one, after the product
        scale = 1.0
    result = out if out.dtype == a.dtype else a.new_empty(out.shape)
    torch.addmm(result, a, b, beta=0, alpha=scale, out=result)
    if right is not None or scales != (1.0, 1.0):
        rank = 0 if right is None else 1 if right.dim() == 1 else right.shape[0]
        left = None if left is None else fp32(left)
        right = None if right is None else fp32(right)
        to = out if out.dtype in DTYPES else result  # which is fp32, for fp16
        kernels.spectral_finish_product(
            *(result.data_ptr(), result.dtype == torch.bfloat16, *result.shape, *scales),
            *(pointer(left), pointer(right), rank, to.data_ptr(), to.dtype == torch.bfloat16, threads(to)),
        )
        result = to
    if result is not out:
        out.copy_(result)


def _operand(
    kernels: ctypes.CDLL, codes: Tensor, scales: Tensor, format: str, rows: int, cols: int, dtype: torch.dtype
) -> Tensor:
    """What is multiplied, [rows, cols], less the tensor scale; an identity operand as it is."""
    if format not in KINDS:
        return codes[:, :cols].to(dtype)
    values = codes.new_empty((rows, cols), dtype=dtype)
    _fill(kernels, codes, scales, format, 1.0, values)
    return values


def _fill(kernels: ctypes.CDLL, codes: Tensor, scales: Tensor, format: str, factor: float, values: Tensor) -> None:
    """values [rows, cols], contiguous fp32 or (exact with factor 1) bf16: code * block scale * factor."""
    codes, scales = codes.contiguous(), scales.contiguous()
    tile_rows = 1 if scales.shape[0] == codes.shape[0] else FORMATS[format].block
    kernels.spectral_dequantize(
        *(codes.data_ptr(), scales.data_ptr(), KINDS[format], scales.shape[1], tile_rows, *values.shape, factor),
        *(values.data_ptr(), values.dtype == torch.bfloat16, threads(values)),
    )


def _column_mean(
    kernels: ctypes.CDLL,
    x: Tensor,
    min_rows: int,
    mean: Tensor,
    nonzero: Tensor | None = None,
    total: Tensor | None = None,
    common: Tensor | None = None,
    amax: Tensor | None = None,
    common_amax: Tensor | None = None,
) -> bool:
    """Fill what is given: of x [tokens, features]. False: amax and common_amax are still to be found."""
    x = readable(x)
    if x.stride(1) != 1:
        x = x.contiguous()
    found: int = kernels.spectral_column_mean(
        *(x.data_ptr(), x.dtype == torch.bfloat16, *x.shape, x.stride(0), min_rows),
        *map(pointer, (mean, nonzero, total, common, amax, common_amax)),
        threads(x),
    )
    return found != 0


_KERNELS = (
    *(quantize, round, amax, dequantize, carry),
    *(scaled_mm, product, product_plus_row, product_plus_outer),
    *(token_mean, token_mean_nonzero, token_mean_amax, token_mean_nonzero_amax),
)


def register() -> None:
    """Put these functions behind the operators on the CPU."""
    for kernel in _KERNELS:
        implement(kernel.__name__, kernel, "CPU")
