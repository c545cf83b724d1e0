"""spectral::quantize, round and amax on the CPU: the reference's codes, scales and values, bit for bit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.cpu.build import library
from spectral_compile.lowering.cpu.tensors import fp32, pointer, threads, with_contiguous_rows
from spectral_compile.ops import quantize as quantize_op
from spectral_compile.ops import round as round_op
from spectral_compile.ops.library import copy_into

KINDS = {"nvfp4": 0, "mxfp4": 1}  # kernels.cpp's Kind; what is not here runs as the reference


def quantize(
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
    amax: Tensor | None = None,
    *,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """spectral::quantize of x [M, K]."""
    seed = None if seed is None else seed.to(torch.int64)
    how = (seed, format, scale, axis, tile_rows, hadamard, stream)
    kernels = library()
    if kernels is None or format not in KINDS:
        return copy_into(out, quantize_op.quantize(x, mean, rows, *how, amax))
    quantize_op.check_quantiser(format, scale, axis, tile_rows, seed)
    codes, scales, tensor_scale = out
    to = (codes.data_ptr(), scales.data_ptr(), None, False, 0, 0)
    matrix = _Matrix(x, mean, rows)
    scaled = (pointer(amax), tensor_scale.data_ptr())
    matrix.give(kernels.spectral_quantize, *_how(matrix, *how), *to, *scaled, threads(x))
    return None


def round(
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
    dtype: torch.dtype,
    amax: Tensor | None = None,
    *,
    out: tuple[Tensor, Tensor],
) -> None:
    """spectral::round of x [M, K]: values [M, K] in dtype, and the tensor's scale."""
    seed = None if seed is None else seed.to(torch.int64)
    how = (seed, format, scale, axis, tile_rows, hadamard, stream)
    kernels = library()
    if kernels is None or format not in KINDS:
        return copy_into(out, round_op.round(x, mean, rows, *how, dtype, amax))
    quantize_op.check_quantiser(format, scale, axis, tile_rows, seed)
    values, tensor_scale = out
    matrix = _Matrix(x, mean, rows)
    lies = values.t().contiguous() if matrix.transposed else values  # as the kernel reads x
    to = (None, None, lies.data_ptr(), dtype == torch.bfloat16, *lies.shape)
    scaled = (pointer(amax), tensor_scale.data_ptr())
    matrix.give(kernels.spectral_quantize, *_how(matrix, *how), *to, *scaled, threads(x))
    if matrix.transposed:
        values.copy_(lies.t())
    return None


def amax(x: Tensor, mean: Tensor | None, rows: Tensor | None, *, out: tuple[Tensor]) -> None:
    """spectral::amax of x [M, K]: [] fp32."""
    kernels = library()
    if kernels is None:
        return copy_into(out, round_op.amax(x, mean, rows))
    _Matrix(x, mean, rows).give(kernels.spectral_amax, out[0].data_ptr(), threads(x))
    return None


class _Matrix:
    """x [M, K] less rows (outer) mean, as kernels read it: by contiguous rows, and so perhaps transposed."""

    def __init__(self, x: Tensor, mean: Tensor | None, rows: Tensor | None) -> None:
        self.matrix, self.transposed = with_contiguous_rows(x)
        self.factors: list[Tensor | None] = [None, None]  # of the rows and of the columns that are read
        if mean is not None:
            self.factors = [fp32(x.new_ones(x.shape[0]) if rows is None else rows), fp32(mean)]
            if self.transposed:
                self.factors.reverse()

    def give(self, kernel: Callable[..., None], *arguments: Any) -> None:
        """Call a kernel with this matrix, which lives as long as the call, and other arguments."""
        m = self.matrix
        layout = (m.data_ptr(), m.dtype == torch.bfloat16, *m.shape, m.stride(0))
        kernel(*layout, *map(pointer, self.factors), *arguments)


def _how(
    matrix: _Matrix,
    seed: Tensor | None,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
) -> tuple[Any, ...]:
    along_rows = (axis == 1) != matrix.transposed
    where = None if seed is None else seed.data_ptr()
    return (KINDS[format], FORMATS[format].scales.index(scale), along_rows, tile_rows, hadamard, where, stream)
