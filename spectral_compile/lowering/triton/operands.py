"""What a product is made of, as the kernels read it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS


class Operand(NamedTuple):
    """A quantised matrix as it lies, [rows, cols] with blocks along cols, of which `rows` or `cols` are k.

    codes and scales are bytes, contiguous along cols. block, tile_rows: a block's extents.
    """

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor
    block: int
    tile_rows: int
    k_last: bool


class LowRank(NamedTuple):
    """left [m, rank] (outer) right [rank, n], contiguous; left absent means ones. Rank 0: nothing."""

    left: Tensor | None
    right: Tensor | None
    rank: int


def operand(codes: Tensor, scales: Tensor, tensor_scale: Tensor, format: str, k_last: bool) -> Operand:
    """As the kernels read it."""
    block = FORMATS[format].block
    tile_rows = 1 if scales.shape[-2] == codes.shape[-2] else block
    return Operand(_rows(codes), _rows(scales.view(torch.uint8)), tensor_scale, block, tile_rows, k_last)


def low_rank(left: Tensor | None, right: Tensor | None) -> LowRank:
    """As the kernels read it."""
    if right is None:
        return LowRank(None, None, 0)
    if right.dim() == 1:
        return LowRank(None if left is None else _rows(left[:, None]), _rows(right[None]), 1)
    assert left is not None
    return LowRank(_rows(left), _rows(right), right.shape[0])


def epilogue_arguments(a: Operand, b: Operand, term: LowRank) -> tuple[Any, ...]:
    """Tensor scales and the low-rank term; what is absent is not read, but a pointer to something."""
    left = a.tensor_scale if term.left is None else term.left
    right = a.tensor_scale if term.right is None else term.right
    strides = 0 if term.left is None else left.stride(0), 0 if term.right is None else right.stride(0)
    return a.tensor_scale, b.tensor_scale, left, right, *strides


def _rows(x: Tensor) -> Tensor:
    """Contiguous along the last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()
