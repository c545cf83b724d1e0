"""The order in which Blackwell's block-scaled GEMMs read scales: tiles of 128 rows by 4 blocks, 512 bytes each.

The layout is that of cuBLAS ("1D block scaling factors layout"): within a tile, row r and block c lie at byte
(r % 32) * 16 + (r // 32) * 4 + c; tiles follow each other along the blocks first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS, TILE_COLS = 128, 4


def swizzle(scales: Tensor) -> Tensor:
    """Scales [rows, blocks], one byte each, in the GEMM's order: one dimension, padded with zeros to whole tiles."""
    if scales.dim() != 2 or scales.element_size() != 1:
        raise ValueError(f"scales are a matrix of bytes, not {scales.dtype} of shape {list(scales.shape)}")
    rows, cols = scales.shape
    # Bytes: float8 types have no padding.
    padded = F.pad(scales.view(torch.uint8), (0, -cols % TILE_COLS, 0, -rows % TILE_ROWS))
    down, across = padded.shape[0] // TILE_ROWS, padded.shape[1] // TILE_COLS
    tiles = padded.reshape(down, 4, 32, across, TILE_COLS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1).view(scales.dtype)


def unswizzle(swizzled: Tensor, rows: int, blocks: int) -> Tensor:
    """The inverse of `swizzle`: [rows, blocks]. Raises ValueError where the number of scales is another."""
    down, across = -(-rows // TILE_ROWS), -(-blocks // TILE_COLS)
    expected = down * across * TILE_ROWS * TILE_COLS
    if swizzled.numel() != expected:
        raise ValueError(f"swizzled scales of [{rows}, {blocks}] are {expected} bytes, not {swizzled.numel()}")
    tiles = swizzled.view(torch.uint8).reshape(down, across, 32, 4, TILE_COLS)
    plain = tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLS)
    return plain[:rows, :blocks].contiguous().view(swizzled.dtype)
