"""What is measured of one operand, and of one product: numbers, from tensors. Plain torch; runs every so many steps."""

import math
from typing import Any

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.formats.hadamard import hadamard as hadamard_transform
from spectral_compile.ops.center import center

SAMPLE = 2**20  # elements; of larger operands that many are looked at, in rows evenly spread
_CHUNK = 32  # rows together: whole blocks along either axis, in all formats
_CLIPPED = 1 + 2**-20  # beyond what a block holds by more than rounding

spectral = torch.ops.spectral


def of_operand(
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
    tensor_scale: Tensor,
    tokens: bool,
) -> dict[str, float | None]:
    """Of x [M, K] as `spectral::quantize` is about to quantise it, which gave it `tensor_scale`.

    snr_db: 10 log10 of the power of what is quantised over that of its error. clipped: the share of elements beyond
    what their block can hold. amax: the largest magnitude of what is quantised, of all elements. mean_to_deviation, and
    mean_to_deviation_after the mean was taken out: the norm of the mean row over the root mean square norm of rows
    less it; only where rows are `tokens`. None for what is not defined.
    """
    sample = sampled_rows(x)
    part, part_rows = x[sample], None if rows is None else rows[sample]
    residual = part.to(torch.float32) if mean is None else center(part, mean, part_rows)
    known = tensor_scale * 2688  # so that a sample is scaled as the whole is
    how = (seed, format, scale, axis, tile_rows, hadamard, stream)
    codes, scales, part_scale = spectral.quantize(part, mean, part_rows, *how, known)
    stored = hadamard_transform(residual, axis) if hadamard else residual
    stored = stored if axis == 1 else stored.t()
    error = spectral.dequantize(codes, scales, part_scale, format, *stored.shape) - stored
    limits = _spread(scales.to(torch.float32) * (6 * _CLIPPED * part_scale), FORMATS[format].block, tile_rows)
    return {
        "snr_db": _decibels(_power(stored), _power(error)),
        "clipped": float((stored.abs() > limits[: stored.shape[0], : stored.shape[1]]).to(torch.float32).mean()),
        "amax": _number(spectral.amax(x, mean, rows)),
        **(_means(x, part, residual, mean, rows) if tokens else {}),
    }


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Of the angle between two tensors."""
    a, b = a.to(torch.float32).flatten(), b.to(torch.float32).flatten()
    return _number(torch.dot(a, b) / (a.norm() * b.norm()))


def sampled_rows(x: Tensor) -> Any:
    """Which rows of x [M, K] are looked at: all, or chunks evenly spread."""
    chunks, wanted = x.shape[0] // _CHUNK, max(1, SAMPLE // max(1, _CHUNK * x.shape[1]))
    if chunks <= wanted:
        return slice(None)
    starts = torch.arange(wanted, device=x.device) * chunks // wanted * _CHUNK
    return (starts[:, None] + torch.arange(_CHUNK, device=x.device)).flatten()


def _means(
    x: Tensor, part: Tensor, residual: Tensor, mean: Tensor | None, rows: Tensor | None
) -> dict[str, float | None]:
    """The mean is that of all tokens, deviations those of the sample."""
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
