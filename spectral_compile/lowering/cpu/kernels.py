"""The spectral:: operators on the CPU: tensors in and out of the C++ kernels; the reference without them."""

import ctypes

import torch
from torch import Tensor

from spectral_compile.formats.nvfp4 import BLOCK, tensor_scale
from spectral_compile.lowering.cpu.build import library
from spectral_compile.ops import dequantize as dequantize_op
from spectral_compile.ops import quantize as quantize_op
from spectral_compile.ops import scaled_mm as scaled_mm_op
from spectral_compile.ops import token_mean as token_mean_op
from spectral_compile.ops.library import implement

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_DTYPES = (torch.bfloat16, torch.float32)  # what kernels read and write; fp16 goes through fp32
_SERIAL = 32768  # elements; the grain size of torch's own kernels


def quantize(
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    format: str,
    axis: int,
    tile_rows: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """spectral::quantize of x [M, K]: the reference's codes, scales and amax, bit for bit."""
    kernels = library()
    if kernels is None or format != "nvfp4":
        return quantize_op.quantize(x, mean, rows, seed, format, axis, tile_rows, stream)
    quantize_op.check_quantiser(format, axis, tile_rows)

    across, along = (x.shape[0], x.shape[1]) if axis == 1 else (x.shape[1], x.shape[0])
    blocks, tiles = -(-along // BLOCK), -(-across // tile_rows)
    codes = x.new_empty((across, blocks * (BLOCK // 2)), dtype=torch.uint8)
    scales = x.new_empty((tiles, blocks), dtype=torch.float8_e4m3fn)
    amax = x.new_empty((), dtype=torch.float32)

    # The mean's two factors go with the axes of x, whichever of them is the contiguous one.
    by_token = by_feature = None
    if mean is not None:
        by_token = _vector(x.new_ones(x.shape[0]) if rows is None else rows)
        by_feature = _vector(mean)
    matrix, transposed = _with_contiguous_rows(x)
    row_factor, col_factor = (by_feature, by_token) if transposed else (by_token, by_feature)
    seed = None if seed is None else seed.to(torch.int64)
    kernels.spectral_quantize(
        *(matrix.data_ptr(), matrix.dtype == torch.bfloat16, *matrix.shape, matrix.stride(0)),
        *(_pointer(row_factor), _pointer(col_factor), (axis == 1) != transposed, tile_rows),
        *(_pointer(seed), stream),
        *(codes.data_ptr(), scales.data_ptr(), amax.data_ptr(), _threads(x)),
    )
    return codes, scales, amax


def dequantize(codes: Tensor, scales: Tensor, amax: Tensor, format: str, rows: int, cols: int) -> Tensor:
    """spectral::dequantize: fp32 [rows, cols], equal to the reference's."""
    kernels = library()
    if kernels is None or format != "nvfp4":
        return dequantize_op.dequantize(codes, scales, amax, format, rows, cols)
    return _values(kernels, codes, scales, rows, cols, tensor_scale(amax).item(), torch.float32)


def token_mean(x: Tensor, min_rows: int) -> Tensor:
    """spectral::token_mean: [features], fp32."""
    kernels = library()
    if kernels is None or x.dtype not in _FLOATS:
        return token_mean_op.token_mean(x, min_rows)
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    _column_mean(kernels, x, min_rows, mean)
    return mean


def token_mean_nonzero(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """spectral::token_mean_nonzero: mean [features], rows [tokens], total [features], fp32; one read of x."""
    kernels = library()
    if kernels is None or x.dtype not in _FLOATS:
        return token_mean_op.token_mean_nonzero(x, min_rows)
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    total = torch.empty_like(mean)
    rows = x.new_empty(x.shape[0], dtype=torch.float32)
    _column_mean(kernels, x, min_rows, mean, rows, total)
    return mean, rows, total


def scaled_mm(
    a_codes: Tensor,
    a_scales: Tensor,
    a_amax: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_amax: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    a_k_last: bool,
    b_k_last: bool,
    format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """spectral::scaled_mm: [m, n] in out_dtype; sums are fp32, in another order than the reference's.

    torch's bf16 product on a CPU rounds its fp32 sums to bf16. Where the result is bf16 that is one rounding
    more, relative to the product before the rank-one term; any wider result is computed with fp32 products
    instead, whatever the carrier.
    """
    kernels = library()
    if kernels is None or format != "nvfp4":
        return scaled_mm_op.scaled_mm(
            *(a_codes, a_scales, a_amax, b_codes, b_scales, b_amax, left, right),
            *(m, n, k, a_k_last, b_k_last, format, carrier, out_dtype),
        )
    dtype = torch.bfloat16 if carrier == "bf16" and out_dtype == torch.bfloat16 else torch.float32
    a = _values(kernels, a_codes, a_scales, *((m, k) if a_k_last else (k, m)), 1.0, dtype)
    b = _values(kernels, b_codes, b_scales, *((n, k) if b_k_last else (k, n)), 1.0, dtype)
    product = torch.mm(a if a_k_last else a.t(), b.t() if b_k_last else b)

    written = out_dtype if out_dtype in _DTYPES else torch.float32
    out = product if product.dtype == written else product.new_empty((m, n), dtype=written)
    scale_a, scale_b = tensor_scale(a_amax).item(), tensor_scale(b_amax).item()
    left = None if left is None else _vector(left)
    right = None if right is None else _vector(right)
    kernels.spectral_finish_product(
        *(product.data_ptr(), product.dtype == torch.bfloat16, m, n, scale_a, scale_b),
        *(_pointer(left), _pointer(right), out.data_ptr(), out.dtype == torch.bfloat16),
        _threads(out),
    )
    return out.to(out_dtype)


def _values(
    kernels: ctypes.CDLL,
    codes: Tensor,
    scales: Tensor,
    rows: int,
    cols: int,
    factor: float,
    dtype: torch.dtype,
) -> Tensor:
    """code * block scale * factor: [rows, cols], contiguous, in fp32 or (exact with factor 1) bf16."""
    codes, scales = codes.contiguous(), scales.contiguous()
    tile_rows = 1 if scales.shape[0] == codes.shape[0] else BLOCK
    values = codes.new_empty((rows, cols), dtype=dtype)
    kernels.spectral_dequantize(
        *(codes.data_ptr(), scales.data_ptr(), scales.shape[1], tile_rows, rows, cols, factor),
        *(values.data_ptr(), dtype == torch.bfloat16, _threads(values)),
    )
    return values


def _column_mean(
    kernels: ctypes.CDLL,
    x: Tensor,
    min_rows: int,
    mean: Tensor,
    nonzero: Tensor | None = None,
    total: Tensor | None = None,
) -> None:
    """Fill mean [features] (and nonzero [tokens], total [features]) of x [tokens, features]."""
    x = _readable(x)
    if x.stride(1) != 1:
        x = x.contiguous()
    kernels.spectral_column_mean(
        *(x.data_ptr(), x.dtype == torch.bfloat16, *x.shape, x.stride(0)),
        *(min_rows, mean.data_ptr(), _pointer(nonzero), _pointer(total), _threads(x)),
    )


def _with_contiguous_rows(x: Tensor) -> tuple[Tensor, bool]:
    """x or its transpose, whichever has contiguous rows, and whether it is the latter; else a copy of x."""
    x = _readable(x)
    if x.stride(1) == 1:
        return x, False
    if x.stride(0) == 1:
        return x.t(), True
    return x.contiguous(), False


def _readable(x: Tensor) -> Tensor:
    return x if x.dtype in _DTYPES else x.to(torch.float32)


def _threads(work: Tensor) -> int:
    """How many threads to use: one where starting others costs more than it saves."""
    return torch.get_num_threads() if work.numel() > _SERIAL else 1


def _vector(v: Tensor) -> Tensor:
    return v.to(torch.float32).contiguous()


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def register() -> None:
    """Put these functions behind the operators on the CPU."""
    for function in (quantize, dequantize, token_mean, token_mean_nonzero, scaled_mm):
        implement(function.__name__, function, "CPU")
