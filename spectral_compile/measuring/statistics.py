"""What is measured of one operand, and of one product: numbers, from tensors. Plain torch; runs every so many steps."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.formats.hadamard import hadamard as hadamard_transform

SAMPLE = 2**20  # elements; of larger operands that many are looked at, in rows evenly spread
_FEWEST = 128  # rows
_CLIPPED = 1 + 2**-20  # beyond what a block holds by more than rounding

spectral = torch.ops.spectral


class Quantiser(NamedTuple):
    """What `spectral::quantize` is told, beside its operand."""

    seed: Tensor | None
    format: str
    scale: str
    axis: int
    tile_rows: int
    hadamard: bool
    stream: int


def of_operand(
    x: Tensor, mean: Tensor | None, rows: Tensor | None, how: Quantiser, tensor_scale: Tensor, token_axis: int
) -> dict[str, float | None]:
    """Of x [M, K] as `spectral::quantize` is about to quantise it, which gave it `tensor_scale`.

    snr_db: 10 log10 of the power of what is quantised over that of its error. clipped: the share of elements beyond
    what their block can hold, where it holds anything but zero. amax: the largest magnitude of what is quantised, of
    all elements. mean_to_deviation, and mean_to_deviation_after the mean was taken out: the norm of the mean token over
    the root mean square norm of tokens less it; of a weight, whose `token_axis` is negative, there is none. None stands
    for what is not defined.
    """
    block = FORMATS[how.format].block
    sample = sampled_rows(x, block if how.axis == 0 or how.tile_rows > 1 else 1)
    part, part_rows = x[sample], None if rows is None else rows[sample]
    residual = part.to(torch.float32) if mean is None else spectral.center(part, mean, part_rows)
    known = tensor_scale * (448 * 6)  # so a sample is scaled as the whole is, to a rounding
    codes, scales, part_scale = spectral.quantize(part, mean, part_rows, *how, known)
    stored = hadamard_transform(residual, how.axis) if how.hadamard else residual
    stored = stored if how.axis == 1 else stored.t()
    error = spectral.dequantize(codes, scales, part_scale, how.format, *stored.shape) - stored
    limits = _spread(scales.to(torch.float32) * (6 * _CLIPPED * part_scale), block, how.tile_rows)
    limits = limits[: stored.shape[0], : stored.shape[1]]
    clipped = ((stored.abs() > limits) & (limits > 0)).to(torch.float32).mean()
    return {
        "snr_db": _decibels(_power(stored), _power(error)),
        "clipped": _number(clipped + 0 * limits.sum()),  # NaN where the tensor is not finite
        "amax": _number(_amax(x, mean, rows, how)),
        **({} if token_axis < 0 else _means(x, part, residual, mean, rows, token_axis)),
    }


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Of the angle between two tensors."""
    a, b = a.to(torch.float32).flatten(), b.to(torch.float32).flatten()
    return _number(torch.dot(a, b) / (a.norm() * b.norm()))


def sampled_rows(x: Tensor, chunk: int = 1) -> Any:
    """Which rows of x [M, K] are looked at: all, or chunks evenly spread, a few at least however wide they are."""
    chunks, wanted = x.shape[0] // chunk, max(_FEWEST // chunk, SAMPLE // max(1, chunk * x.shape[1]))
    if chunks <= wanted:
        return slice(None)
    starts = (2 * torch.arange(wanted, device=x.device) + 1) * chunks // (2 * wanted) * chunk
    return (starts[:, None] + torch.arange(chunk, device=x.device)).flatten()


def _amax(x: Tensor, mean: Tensor | None, rows: Tensor | None, how: Quantiser) -> Tensor:
    if not how.hadamard:
        return spectral.amax(x, mean, rows)
    x = x if mean is None else spectral.center(x, mean, rows)
    return hadamard_transform(x, how.axis).to(torch.bfloat16).abs().amax()


def _means(
    x: Tensor, part: Tensor, residual: Tensor, mean: Tensor | None, rows: Tensor | None, token_axis: int
) -> dict[str, float | None]:
    """Deviations are those of the sample, and so are means where a sample has all tokens of some features; else they
    are those of all tokens.
    """
    if token_axis == 1:
        tokens = part.t().to(torch.float32)
        return {"mean_to_deviation": _ratio(tokens.mean(0), tokens)}
    before = spectral.token_mean(x, 1)
    found = {"mean_to_deviation": _ratio(before, part.to(torch.float32))}
    if mean is not None:
        share = 1.0 if rows is None else rows.to(torch.float32).mean()
        found["mean_to_deviation_after"] = _ratio(before - share * mean, residual)
    return found


def _ratio(mean: Tensor, rows: Tensor) -> float | None:
    return _number(mean.norm() / (rows - mean).square().sum(1).mean().sqrt())


def _spread(scales: Tensor, block: int, tile_rows: int) -> Tensor:
    """A value for each element of what is stored, of one for each block."""
    return scales.repeat_interleave(block, 1).repeat_interleave(tile_rows, 0)


def _power(x: Tensor) -> float:
    return float(x.to(torch.float64).square().sum())


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if 0 < signal < math.inf and 0 < noise < math.inf else None


def _number(x: Tensor) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None
