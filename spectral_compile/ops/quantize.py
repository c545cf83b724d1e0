"""spectral::quantize: a matrix into codes, block scales and a tensor scale."""

import torch
from torch import Tensor

from spectral_compile.formats.nvfp4 import BLOCK, quantize_nvfp4
from spectral_compile.ops.center import center
from spectral_compile.ops.library import declare

FORMATS = ("nvfp4", "identity")


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
    """Quantise x [M, K] (bf16, fp16 or fp32), less rows (outer) mean where a mean is given, with blocks along `axis`.

    What comes back is stored with the block axis last: x as it is for axis 1, transposed for axis 0. `tile_rows` is
    the block's extent across: 1, or 16 for two-dimensional scaling. `seed` asks for stochastic rounding.

    format "nvfp4": codes uint8 (two a byte), scales float8_e4m3fn, amax fp32: see `formats.nvfp4.Quantized`.
    format "identity": codes are the values themselves, unrounded (fp32 where a mean was removed, else x's dtype),
    scales are empty and amax is 1: the rewrite without the rounding, which is the rewrite's own test.
    """
    check_quantiser(format, axis, tile_rows)
    if mean is not None:
        x = center(x, mean, rows)
    if axis == 0:
        x = x.t()
    if format == "identity":
        return x.clone(memory_format=torch.contiguous_format), x.new_empty(0), x.new_ones((), dtype=torch.float32)
    return quantize_nvfp4(x, tile_rows=tile_rows, seed=seed, stream=stream)


def check_quantiser(format: str, axis: int, tile_rows: int) -> None:
    """Raise a ValueError unless there is such a quantiser: every kernel of the operator asks before it computes."""
    if format not in FORMATS or tile_rows not in (1, BLOCK) or axis not in (0, 1):
        raise ValueError(f"quantize: format {format!r}, axis {axis}, tile_rows {tile_rows}: no such quantiser")


def _fake(
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    format: str,
    axis: int,
    tile_rows: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check_quantiser(format, axis, tile_rows)
    across, along = x.shape if axis == 1 else (x.shape[1], x.shape[0])
    amax = x.new_empty((), dtype=torch.float32)
    if format == "identity":
        dtype = x.dtype if mean is None else torch.float32
        return x.new_empty((across, along), dtype=dtype), x.new_empty(0, dtype=dtype), amax
    blocks = (along + BLOCK - 1) // BLOCK
    tiles = (across + tile_rows - 1) // tile_rows
    codes = x.new_empty((across, blocks * (BLOCK // 2)), dtype=torch.uint8)
    return codes, x.new_empty((tiles, blocks), dtype=torch.float8_e4m3fn), amax


declare(
    "quantize(Tensor x, Tensor? mean, Tensor? rows, Tensor? seed, str format, int axis, int tile_rows, int stream)"
    " -> (Tensor codes, Tensor scales, Tensor amax)",
    reference=quantize,
    fake=_fake,
)
