"""spectral::quantize, quantize_pair and amax on a GPU: the reference's codes and scales, bit for bit.

Nothing here waits for the device, so a CUDA graph can hold it. Importing this imports Triton.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton import launch as how
from spectral_compile.lowering.triton import means, values
from spectral_compile.lowering.triton.device.amax import amax_of_tiles, finish_amax
from spectral_compile.lowering.triton.device.quantize import quantize_tiles
from spectral_compile.lowering.triton.launch import factors, fp32, launch, lies_transposed, matrix
from spectral_compile.ops import quantize as quantize_op
from spectral_compile.ops import round as round_op
from spectral_compile.ops.library import copy_into, implement

FLOATS = (torch.bfloat16, torch.float16, torch.float32)  # what kernels read


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
    if not _has_kernel(x, format):
        reference = (x, mean, rows, seed, format, scale, axis, tile_rows, hadamard, stream, amax)
        return copy_into(out, quantize_op.quantize(*reference))
    quantize_op.check_quantiser(format, scale, axis, tile_rows, seed)
    side = _Side(x, mean, rows, seed, format, scale, axis, tile_rows, hadamard, stream, amax, out)
    return _launch(x, side if axis == 1 else None, side if axis == 0 else None)


def quantize_pair(
    x: Tensor,
    row_mean: Tensor | None,
    row_rows: Tensor | None,
    row_seed: Tensor | None,
    row_format: str,
    row_scale: str,
    row_tile_rows: int,
    row_hadamard: bool,
    row_stream: int,
    row_amax: Tensor | None,
    col_mean: Tensor | None,
    col_rows: Tensor | None,
    col_seed: Tensor | None,
    col_format: str,
    col_scale: str,
    col_tile_rows: int,
    col_hadamard: bool,
    col_stream: int,
    col_amax: Tensor | None,
    *,
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    """spectral::quantize_pair of x [M, K]: one read of x."""
    row = (row_mean, row_rows, row_seed, row_format, row_scale, 1, row_tile_rows, row_hadamard, row_stream)
    col = (col_mean, col_rows, col_seed, col_format, col_scale, 0, col_tile_rows, col_hadamard, col_stream)
    if not (_has_kernel(x, row_format) and _has_kernel(x, col_format)):
        quantize(x, *row, row_amax, out=out[:3])
        return quantize(x, *col, col_amax, out=out[3:])
    quantize_op.check_quantiser(row_format, row_scale, 1, row_tile_rows, row_seed)
    quantize_op.check_quantiser(col_format, col_scale, 0, col_tile_rows, col_seed)
    return _launch(x, _Side(x, *row, row_amax, out[:3]), _Side(x, *col, col_amax, out[3:]))


def amax(x: Tensor, mean: Tensor | None, rows: Tensor | None, *, out: tuple[Tensor]) -> None:
    """spectral::amax of x [M, K]: [] fp32."""
    if x.dtype not in FLOATS or not x.numel():
        return copy_into(out, round_op.amax(x, mean, rows))
    return _amax(x, mean, rows, None, out[0])


@dataclass(frozen=True)
class _Side:
    """One quantisation of x, as `spectral::quantize` takes it, and where its results go."""

    x: Tensor
    mean: Tensor | None
    rows: Tensor | None
    seed: Tensor | None
    format: str
    scale: str
    axis: int
    tile_rows: int
    hadamard: bool
    stream: int
    amax: Tensor | None
    out: tuple[Tensor, Tensor, Tensor]

    def arguments(self) -> tuple[Any, ...]:
        codes, scales, tensor_scale = self.out
        amax = fp32(self.amax)
        if FORMATS[self.format].tensor_scale is None:
            amax = None
        elif amax is None:
            amax = self.x.new_empty((), dtype=torch.float32)
            _amax(self.x, self.mean, self.rows, self.axis if self.hadamard else None, amax)
        seed = None if self.seed is None else self.seed.to(torch.int64)
        stream = self.stream - 2**32 if self.stream >= 2**31 else self.stream  # the same 32 bits
        stored = (codes.view(torch.int64), scales.view(torch.uint8), tensor_scale)
        return (*factors(self.x, self.mean, self.rows), amax, seed, stream, *stored)

    def constants(self) -> tuple[Any, ...]:
        return (self.format, self.scale, self.tile_rows, self.hadamard)


_NOTHING = (None, None, None, None, 0, None, None, None)
_NO_CONSTANTS = ("", "", 1, False)


def _launch(x: Tensor, row: _Side | None, col: _Side | None) -> None:
    sides = [side for side in (row, col) if side is not None]
    tile = how.QUANTIZE_HEAVY if _is_heavy(sides) else how.QUANTIZE
    same_mean = row is not None and col is not None and row.mean is col.mean and row.rows is col.rows
    if lies_transposed(x):
        x, row, col = x.t(), col, row
    launch(
        *(quantize_tiles, tile.count(x), tile.warps, *matrix(x)),
        *(row.arguments() if row else _NOTHING),
        *(col.arguments() if col else _NOTHING),
        *(row.constants() if row else _NO_CONSTANTS),
        *(col.constants() if col else _NO_CONSTANTS),
        *(same_mean, tile.rows, tile.groups),
    )


def _is_heavy(sides: list[_Side]) -> bool:
    """Whether 64 elements a thread would not fit in 255 registers."""
    draws_for_mxfp4 = any(side.format == "mxfp4" and side.seed is not None for side in sides)
    return any(side.scale == "four_six" for side in sides) or (len(sides) == 2 and draws_for_mxfp4)


def _amax(x: Tensor, mean: Tensor | None, rows: Tensor | None, hadamard_axis: int | None, out: Tensor) -> None:
    """The largest magnitude of x less its mean, transformed along an axis or not, to out []; NaN where not finite."""
    tile, transposed = how.AMAX, lies_transposed(x)
    programs = min(tile.count(x.t() if transposed else x), how.AMAX_PROGRAMS)
    partials = x.new_empty(programs, dtype=torch.int32)
    transform = (hadamard_axis is not None, hadamard_axis == (1 if transposed else 0))
    launch(
        *(amax_of_tiles, programs, tile.warps, *matrix(x.t() if transposed else x), *factors(x, mean, rows), partials),
        *(*transform, tile.rows, tile.groups),
    )
    launch(finish_amax, 1, 4, partials, programs, out, how.SEARCH)


def _has_kernel(x: Tensor, format: str) -> bool:
    return format in FORMATS and x.dtype in FLOATS and x.numel() > 0


def kernels() -> dict[str, Callable[..., None]]:
    """By the operator that each is behind."""
    of_means = (means.token_mean, means.token_mean_nonzero, means.token_mean_amax, means.token_mean_nonzero_amax)
    functions = (quantize, quantize_pair, amax, *of_means, values.dequantize, values.carry, values.center)
    return {function.__name__: function for function in functions}


@functools.cache
def register() -> None:
    """Put these functions behind the operators on NVIDIA GPUs; once, however often it is called."""
    for name, kernel in kernels().items():
        implement(name, kernel, "CUDA")
