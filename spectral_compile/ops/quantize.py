"""spectral::quantize: a matrix into codes, block scales and a tensor scale."""

import torch
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats.hadamard import SIZE as HADAMARD_SIZE
from spectral_compile.formats.hadamard import hadamard as hadamard_transform
from spectral_compile.formats.quantized import check
from spectral_compile.ops.center import center
from spectral_compile.ops.library import declare


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise x [M, K] (bf16, fp16 or fp32), less rows (outer) mean where a mean is given, with blocks along `axis`.

    What comes back is stored with the block axis last: x as it is for axis 1, transposed for axis 0. `scale` is one of
    the format's rules. `tile_rows` is the block's extent across: 1, or the block's own size for two-dimensional
    scaling. `hadamard`: transform along the axis first. `seed` asks for stochastic rounding. `amax` may hold what
    `spectral::amax` says of the operand, where that is known already.

    Returns codes, block scales and the tensor's scale, as `formats.Quantized` says. Format "identity" rounds nothing,
    which is the rewrite's own test: codes are the values themselves (fp32 where a mean was removed or a transform
    applied, else x's dtype), scales are empty and the tensor's is 1.
    """
    check_quantiser(format, scale, axis, tile_rows, seed)
    if mean is not None:
        x = center(x, mean, rows)
    if format != "identity":
        return formats.quantize(
            *(x, format),
            axis=axis,
            scale=scale,
            tile_rows=tile_rows,
            hadamard=hadamard,
            seed=seed,
            stream=stream,
            amax=amax,
        )
    if hadamard:
        x = hadamard_transform(x, axis)
    if axis == 0:
        x = x.t()
    return x.clone(memory_format=torch.contiguous_format), x.new_empty(0), x.new_ones((), dtype=torch.float32)


def check_quantiser(format: str, scale: str, axis: int, tile_rows: int, seed: Tensor | None) -> None:
    """Raise a ValueError unless there is such a quantiser: every kernel of the operator asks before it computes."""
    if axis not in (0, 1):
        raise ValueError(f"a matrix is quantised along axis 0 or 1, not {axis}")
    if format == "identity":
        return
    if format not in formats.FORMATS:
        raise ValueError(f"format {format!r} is none; formats are {', '.join(formats.FORMATS)}, identity")
    check(format, scale, tile_rows, stochastic=seed is not None)


def _fake(
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
) -> tuple[Tensor, Tensor, Tensor]:
    check_quantiser(format, scale, axis, tile_rows, seed)
    across, along = x.shape if axis == 1 else (x.shape[1], x.shape[0])
    tensor_scale = x.new_empty((), dtype=torch.float32)
    if format == "identity":
        dtype = x.dtype if mean is None and not hadamard else torch.float32
        if hadamard:
            along = (along + HADAMARD_SIZE - 1) // HADAMARD_SIZE * HADAMARD_SIZE
        return x.new_empty((across, along), dtype=dtype), x.new_empty(0, dtype=dtype), tensor_scale
    kind = formats.FORMATS[format]
    blocks = (along + kind.block - 1) // kind.block
    tiles = (across + tile_rows - 1) // tile_rows
    codes = x.new_empty((across, blocks * (kind.block // 2)), dtype=torch.uint8)
    return codes, x.new_empty((tiles, blocks), dtype=kind.scale_dtype), tensor_scale


declare(
    "quantize(Tensor x, Tensor? mean, Tensor? rows, Tensor? seed, str format, str scale, int axis, int tile_rows,"
    " bool hadamard, int stream, Tensor? amax=None) -> (Tensor codes, Tensor scales, Tensor tensor_scale)",
    reference=quantize,
    fake=_fake,
)
