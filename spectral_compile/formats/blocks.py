"""Blocks as axes of their own: what a format computes for a block broadcasts over it."""

import torch.nn.functional as F
from torch import Tensor


def to_blocks(x: Tensor, block: int, tile_rows: int) -> Tensor:
    """[..., rows, cols] to [..., tiles, tile_rows, blocks, block], padded with zeros."""
    rows, cols = x.shape[-2:]
    x = F.pad(x, (0, -cols % block, 0, -rows % tile_rows))
    return x.unflatten(-1, (-1, block)).unflatten(-3, (-1, tile_rows))


def from_blocks(blocks: Tensor, rows: int) -> Tensor:
    """The inverse, but for the columns' padding, which stays: [..., rows, blocks * block]."""
    return blocks.flatten(-2).flatten(-3, -2)[..., :rows, :]


def block_amax(blocks: Tensor) -> Tensor:
    """The largest magnitude in each block, [..., tiles, 1, blocks, 1]; NaN where the block holds NaN."""
    return blocks.abs().amax((-3, -1), keepdim=True)


def block_sum(blocks: Tensor) -> Tensor:
    """The sum of each block, [..., tiles, 1, blocks, 1], in an order that every device can follow: neighbouring rows
    are added in pairs until one is left, then neighbouring columns.
    """
    while blocks.shape[-3] > 1:
        blocks = blocks[..., 0::2, :, :] + blocks[..., 1::2, :, :]
    while blocks.shape[-1] > 1:
        blocks = blocks[..., 0::2] + blocks[..., 1::2]
    return blocks
