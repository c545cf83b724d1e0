"""spectral::grouped_quantize and stack_quantize: the operands of experts' products, each expert's as if it were alone.

An expert is a linear layer of its own, so its tokens and its weight have a tensor scale of their own: what is far away
in another expert, and what belongs to nobody, changes no code and no scale of it, and a NaN stays with its expert.
These are loops over `spectral::quantize`, which is what makes them right; the loop waits for the offsets.
"""

from typing import Any

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.formats.hadamard import SIZE as HADAMARD_SIZE
from spectral_compile.ops.groups import expert_stream, padded_spans, padded_tokens, spans
from spectral_compile.ops.library import declare
from spectral_compile.ops.quantize import check_quantiser

spectral = torch.ops.spectral


def grouped_quantize(
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    offsets: Tensor,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise the groups of x [tokens, features], less rows [tokens] (outer) their expert's mean [experts, features].

    axis 1: blocks run along features, and tokens lie as they did; those of nobody are zero. A square block's scale is
    repeated for each of its tokens, for groups end anywhere. axis 0: blocks run along tokens, and the result is stored
    transposed, [features, padded_tokens(...)], each group moved to a multiple of `block`, with zeros in between: no
    block holds tokens of two experts.

    The rest as for `spectral::quantize`; tensor scales are [experts], and each expert has a random stream of its own.
    Raises ValueError for a quantiser that there is not.
    """
    codes, scales, tensor_scales = _zeros(
        _fake(x, mean, rows, seed, offsets, format, scale, axis, tile_rows, hadamard, stream, block)
    )
    groups = spans(offsets, x.shape[0])
    places = groups if axis == 1 else padded_spans(groups, block)
    for expert, ((start, end), (first, _)) in enumerate(zip(groups, places, strict=True)):
        if start == end:
            continue
        part_mean = None if mean is None else mean[expert]
        part_rows = None if rows is None else rows[start:end]
        how = (seed, format, scale, axis, tile_rows, hadamard, expert_stream(stream, expert))
        found, found_scales, tensor_scales[expert] = spectral.quantize(x[start:end], part_mean, part_rows, *how)
        if axis == 1:
            codes[first : first + found.shape[0]] = found
            if scales.numel():
                repeated = found_scales.view(torch.uint8).repeat_interleave(tile_rows, 0)
                _bytes(scales)[start:end] = repeated[: end - start]
        else:
            _along(codes, first, _packed(format), found)
            if scales.numel():
                _along(_bytes(scales), first, FORMATS[format].block, _bytes(found_scales))
    return codes, scales, tensor_scales


def stack_quantize(
    x: Tensor,
    seed: Tensor | None,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`spectral::quantize` of each matrix of x [experts, rows, cols]: codes and block scales [experts, ...], tensor
    scales [experts]. axis: 0 for blocks along rows, which are then stored last, 1 along columns.
    """
    codes, scales, tensor_scales = _zeros(_fake_stack(x, seed, format, scale, axis, tile_rows, hadamard, stream))
    for expert, matrix in enumerate(x):
        how = (seed, format, scale, axis, tile_rows, hadamard, expert_stream(stream, expert))
        codes[expert], found_scales, tensor_scales[expert] = spectral.quantize(matrix, None, None, *how)
        if scales.numel():
            _bytes(scales)[expert] = _bytes(found_scales)
    return codes, scales, tensor_scales


def _zeros(like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Byte by byte: not every type of scales has a zero."""
    codes, scales, tensor_scales = like
    _bytes(scales).zero_()
    return codes.zero_(), scales, tensor_scales.fill_(1)


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


def _packed(format: str) -> int:
    return 1 if format == "identity" else 2  # elements in a code's byte


def _along(to: Tensor, first: int, unit: int, what: Tensor) -> None:
    """Put columns, each of `unit` tokens, where token `first` lies."""
    to[:, first // unit : first // unit + what.shape[1]] = what


def _fake(
    x: Tensor,
    mean: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    offsets: Tensor,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check_quantiser(format, scale, axis, tile_rows, seed)
    if axis == 1:
        across, along = x.shape
        tiles: Any = across
    else:
        across, along = x.shape[1], padded_tokens(x.shape[0], offsets.shape[0], block)
        tiles = (across + tile_rows - 1) // tile_rows
    dtype = x.dtype if mean is None and not hadamard else torch.float32
    return _empty(x, (), across, along, tiles, format, hadamard, dtype, offsets.shape[0])


def _fake_stack(
    x: Tensor,
    seed: Tensor | None,
    format: str,
    scale: str,
    axis: int,
    tile_rows: int,
    hadamard: bool,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    check_quantiser(format, scale, axis, tile_rows, seed)
    across, along = (x.shape[1], x.shape[2]) if axis == 1 else (x.shape[2], x.shape[1])
    tiles = (across + tile_rows - 1) // tile_rows
    dtype = torch.float32 if hadamard else x.dtype
    return _empty(x, x.shape[:1], across, along, tiles, format, hadamard, dtype, x.shape[0])


def _empty(
    x: Tensor,
    batch: tuple[int, ...],
    across: int,
    along: int,
    tiles: int,
    format: str,
    hadamard: bool,
    dtype: torch.dtype,
    experts: int,
) -> tuple[Tensor, Tensor, Tensor]:
    tensor_scales = x.new_empty(experts, dtype=torch.float32)
    if format == "identity":
        if hadamard:
            along = (along + HADAMARD_SIZE - 1) // HADAMARD_SIZE * HADAMARD_SIZE
        return x.new_empty((*batch, across, along), dtype=dtype), x.new_empty(0, dtype=dtype), tensor_scales
    kind = FORMATS[format]
    blocks = (along + kind.block - 1) // kind.block
    codes = x.new_empty((*batch, across, blocks * (kind.block // 2)), dtype=torch.uint8)
    return codes, x.new_empty((*batch, tiles, blocks), dtype=kind.scale_dtype), tensor_scales


declare(
    "grouped_quantize(Tensor x, Tensor? mean, Tensor? rows, Tensor? seed, Tensor offsets, str format, str scale,"
    " int axis, int tile_rows, bool hadamard, int stream, int block)"
    " -> (Tensor codes, Tensor scales, Tensor tensor_scales)",
    reference=grouped_quantize,
    fake=_fake,
)
declare(
    "stack_quantize(Tensor x, Tensor? seed, str format, str scale, int axis, int tile_rows, bool hadamard, int stream)"
    " -> (Tensor codes, Tensor scales, Tensor tensor_scales)",
    reference=stack_quantize,
    fake=_fake_stack,
)
