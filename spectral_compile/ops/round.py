"""spectral::amax, round and carry: what a product multiplies, without packed codes between quantiser and product.

`lowering/cpu` puts them in the place of `quantize` and `scaled_mm`, bit for bit the same, where codes need not be kept.
"""

import torch
from torch import Tensor

from spectral_compile.formats.hadamard import SIZE as HADAMARD_SIZE
from spectral_compile.ops.center import center
from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.library import declare
from spectral_compile.ops.quantize import check_quantiser, quantize


def amax(x: Tensor, mean: Tensor | None, rows: Tensor | None) -> Tensor:
    """The largest magnitude of x [M, K] less rows (outer) mean, fp32 []; NaN where it holds NaN or Inf. What `quantize`
    computes first, whatever the axis: both quantisations of a tensor can share it.
    """
    x = x if mean is None else center(x, mean, rows)
    largest = x.to(torch.float32).abs().amax() if x.numel() else x.new_zeros((), dtype=torch.float32)
    return torch.where(torch.isfinite(largest), largest, torch.nan)


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
) -> tuple[Tensor, Tensor]:
    """code * block scale of what `quantize` makes of x [M, K], as x lies, in bf16 or fp32; and the tensor's scale.

    With `hadamard` the axis is padded to a multiple of 16. `amax`, where given, is what `spectral::amax` says.
    """
    codes, scales, tensor_scale = quantize(x, mean, rows, seed, format, scale, axis, tile_rows, hadamard, stream, amax)
    extent = extents(x, axis, hadamard)[axis]
    values = carried(codes, scales, format, extent)
    return _contiguous(values if axis == 1 else values.t(), dtype), tensor_scale


def carry(codes: Tensor, scales: Tensor, format: str, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    """code * block scale of what `quantize` stored: [rows, cols] in bf16 or fp32, exact in either."""
    return _contiguous(carried(codes, scales, format, cols), dtype)


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy: operators neither return a view of what they were given, nor another layout than their fakes'."""
    return x.to(dtype).clone(memory_format=torch.contiguous_format)


def extents(x: Tensor, axis: int, hadamard: bool) -> list[int]:
    """The shape of rounded values: that of x, but for the padding of a Hadamard transform."""
    extents = list(x.shape)
    if hadamard:
        extents[axis] = (extents[axis] + HADAMARD_SIZE - 1) // HADAMARD_SIZE * HADAMARD_SIZE
    return extents


def _fake_amax(x: Tensor, mean: Tensor | None, rows: Tensor | None) -> Tensor:
    return x.new_empty((), dtype=torch.float32)


def _fake_round(
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
) -> tuple[Tensor, Tensor]:
    check_quantiser(format, scale, axis, tile_rows, seed)
    return x.new_empty(extents(x, axis, hadamard), dtype=dtype), x.new_empty((), dtype=torch.float32)


def _fake_carry(codes: Tensor, scales: Tensor, format: str, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
    return codes.new_empty((rows, cols), dtype=dtype)


declare("amax(Tensor x, Tensor? mean, Tensor? rows) -> Tensor", reference=amax, fake=_fake_amax)
declare(
    "round(Tensor x, Tensor? mean, Tensor? rows, Tensor? seed, str format, str scale, int axis,"
    " int tile_rows, bool hadamard, int stream, ScalarType dtype, Tensor? amax=None)"
    " -> (Tensor values, Tensor tensor_scale)",
    reference=round,
    fake=_fake_round,
)
declare(
    "carry(Tensor codes, Tensor scales, str format, SymInt rows, SymInt cols, ScalarType dtype) -> Tensor",
    reference=carry,
    fake=_fake_carry,
)
