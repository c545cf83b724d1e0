"""From values to codes and scales and back: what the formats have in common.

Blocks run along one axis and, where `tile_rows` is not 1, extend over as many rows of the axis before it. Anything that
does not divide is padded with zeros, which is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_compile.formats import e2m1, mxfp4, nvfp4
from spectral_compile.formats.blocks import from_blocks, to_blocks
from spectral_compile.formats.hadamard import hadamard as hadamard_transform
from spectral_compile.formats.philox import GROUP, random_bytes


@dataclass(frozen=True)
class Format:
    """block: values that share a scale. scales: the rules by which scales are chosen, the default first.

    block_scales(blocks, amax, rule): the scales, and the factors that bring values into E2M1's range.
    tensor_scale(amax): what the tensor is scaled by on top; None where formats have no such thing.
    """

    block: int
    scale_dtype: torch.dtype
    scales: tuple[str, ...]
    block_scales: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]
    tensor_scale: Callable[[Tensor], Tensor] | None


FORMATS = {
    "nvfp4": Format(nvfp4.BLOCK, torch.float8_e4m3fn, nvfp4.SCALES, nvfp4.block_scales, nvfp4.tensor_scale),
    "mxfp4": Format(mxfp4.BLOCK, torch.float8_e8m0fnu, mxfp4.SCALES, mxfp4.block_scales, None),
}


class Quantized(NamedTuple):
    """A tensor [..., rows, cols] with blocks along cols (the block axis, wherever it was, is stored last).

    codes [..., rows, blocks * block / 2] uint8, two a byte, the first in the low nibble, padded with zeros.
    scales [..., tiles, blocks], float8_e4m3fn or float8_e8m0fnu; tiles is rows for blocks of one row.
    tensor_scale [] fp32, of code * block scale; NaN where the tensor holds NaN or Inf, so that everything computed from
    it is NaN. Formats without one mark the block instead, and have 1.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor


def quantize(
    x: Tensor,
    format: str = "nvfp4",
    *,
    axis: int = -1,
    scale: str | None = None,
    tile_rows: int = 1,
    hadamard: bool = False,
    seed: Tensor | None = None,
    stream: int = 0,
    amax: Tensor | None = None,
) -> Quantized:
    """Quantise x, of any floating type and of one dimension or more, in blocks along `axis`.

    format: a name in FORMATS. scale: one of the format's rules, the first where None. tile_rows: 1, or the block's own
    size for square blocks. hadamard: transform x along the axis first, and round the result to bf16, as published.
    seed: int64, one element, asks for stochastic rounding; `stream` (below 2**32) keeps the random bits of different
    operands apart. amax: the largest magnitude by which NVFP4 scales, where it is not that of x (a sample of a larger
    tensor, say). Raises ValueError where there is no such quantiser.
    """
    kind = check(format, scale, tile_rows, stochastic=seed is not None)
    if not 0 <= stream < 2**32:
        raise ValueError(f"a stream is a number from 0 to 2**32 - 1, not {stream}")
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"a seed is one int64 element, not {seed.dtype} of shape {list(seed.shape)}")
    if x.dim() == 0:
        raise ValueError("a scalar has no axis along which to take blocks")
    if hadamard:
        x = hadamard_transform(x, axis).to(torch.bfloat16)
    x = x.to(torch.float32).movedim(axis, -1).contiguous()  # what follows keeps the layout, also for a transpose
    if x.dim() == 1:
        q = quantize(x[None], format, scale=scale, tile_rows=tile_rows, seed=seed, stream=stream, amax=amax)
        return Quantized(q.codes[0], q.scales[0], q.tensor_scale)

    if kind.tensor_scale is None:
        amax = x.new_ones(())
    elif amax is None:
        amax = _amax(x)
    x = torch.where(torch.isfinite(amax), x, 0.0)  # a poisoned tensor has codes and scales of zero
    blocks = to_blocks(x, kind.block, tile_rows)
    scales, inverse = kind.block_scales(blocks, torch.nan_to_num(amax), scale or kind.scales[0])
    y = torch.where(inverse == 0, 0.0, blocks * inverse).clamp(-e2m1.MAX, e2m1.MAX)  # 0: a poisoned block's
    y = from_blocks(y, rows=x.shape[-2])
    if seed is None:
        codes = e2m1.encode_nearest(y)
    else:
        codes = e2m1.encode_stochastic(y, random_bytes(seed, stream, y.numel() // GROUP).view(y.shape))
    scales = scales[..., 0, :, 0].clone(memory_format=torch.contiguous_format)  # the usual strides, of no rows too
    return Quantized(e2m1.pack(codes), scales, amax if kind.tensor_scale is None else kind.tensor_scale(amax))


def dequantize(q: Quantized, format: str, size: int, axis: int = -1) -> Tensor:
    """The fp32 values of a quantised tensor, whose block axis, of `size` elements, goes back to `axis`.

    A Hadamard transform is not undone, and spreads values into its padding: `size` is then a multiple of 16. Raises
    ValueError for a size that the codes do not have.
    """
    values = block_values(q, format)
    if not 0 <= size <= values.shape[-1]:
        raise ValueError(f"the codes are of at most {values.shape[-1]} elements along the block axis, not {size}")
    values = values[..., :size]
    return (values if check(format).tensor_scale is None else values * q.tensor_scale).movedim(-1, axis)


def block_values(q: Quantized, format: str) -> Tensor:
    """code * block scale, fp32 [..., rows, blocks * block]: at most 6 significant bits, hence exact in bf16 as well."""
    codes = e2m1.decode(e2m1.unpack(q.codes))
    if codes.dim() == 1:
        return block_values(Quantized(q.codes[None], q.scales[None], q.tensor_scale), format)[0]
    rows, block = codes.shape[-2], check(format).block
    tile_rows = 1 if q.scales.shape[-2] == rows else block
    scales = q.scales.to(torch.float32)[..., :, None, :, None]
    return from_blocks(to_blocks(codes, block, tile_rows) * scales, rows)


def check(format: str, scale: str | None = None, tile_rows: int = 1, stochastic: bool = False) -> Format:
    """The format. Raises ValueError, naming what there is, unless there is such a quantiser."""
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is none; formats are {', '.join(FORMATS)}")
    kind = FORMATS[format]
    if scale is not None and scale not in kind.scales:
        raise ValueError(f"{format} has no scale rule {scale!r}; its rules are {', '.join(kind.scales)}")
    if tile_rows not in (1, kind.block):
        raise ValueError(f"blocks of {format} extend over 1 or {kind.block} rows, not {tile_rows}")
    if stochastic and scale == "four_six":
        raise ValueError("scale 'four_six' weighs errors of rounding to nearest: not for stochastic rounding")
    return kind


def _amax(x: Tensor) -> Tensor:
    """The largest magnitude, NaN where any element is not finite."""
    largest = x.abs().amax() if x.numel() else x.new_zeros(())
    return torch.where(torch.isfinite(largest), largest, torch.nan)
