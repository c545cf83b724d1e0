"""NVFP4: E2M1 codes, an E4M3 scale for each block of 16, one fp32 scale a tensor.

The formulas, and the order of their operations, are those of NVIDIA's published recipe (Pretraining LLMs with
NVFP4, 2025): multiplying where they multiply and dividing where they divide decides 0.08 % of the scale bytes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from spectral_compile.formats import e2m1
from spectral_compile.formats.philox import random_bytes

BLOCK = 16
SCALE_MAX = 448.0  # the largest E4M3 value
_FLT_MAX = torch.finfo(torch.float32).max


class Quantized(NamedTuple):
    """A matrix [rows, cols] in NVFP4, blocks along cols.

    codes [rows, ceil(cols / 16) * 8] uint8, two a byte, padded with zeros; scales [rows, ceil(cols / 16)] for 1 x 16
    blocks or [ceil(rows / 16), ceil(cols / 16)] for 16 x 16, float8_e4m3fn; amax [] fp32, the tensor's largest
    magnitude, NaN where the tensor holds NaN or Inf: everything computed from it is then NaN.
    """

    codes: Tensor
    scales: Tensor
    amax: Tensor


def quantize_nvfp4(x: Tensor, *, tile_rows: int = 1, seed: Tensor | None = None, stream: int = 0) -> Quantized:
    """Quantise x [rows, cols] along cols, in blocks of tile_rows x 16 (tile_rows 1 or 16).

    Rounds to nearest, or stochastically where a `seed` (int64, one element) is given; `stream` (below 2**32) keeps
    the random bits of different operands apart.
    """
    x = x.to(torch.float32).contiguous()  # what follows keeps the layout, also for a transpose
    rows, cols = x.shape
    largest = x.abs().amax() if x.numel() else torch.zeros((), device=x.device)
    amax = torch.where(torch.isfinite(largest), largest, torch.nan)
    x = torch.where(torch.isfinite(amax), x, 0.0)  # a poisoned tensor has codes and scales of zero
    encode = encode_scale(torch.nan_to_num(amax))

    blocks = -(-cols // BLOCK)
    x = torch.nn.functional.pad(x, (0, blocks * BLOCK - cols))
    block_amax = _tile_amax(x, tile_rows)
    scales = torch.clamp(block_amax * (encode * (1 / 6)), max=SCALE_MAX).to(torch.float8_e4m3fn)
    inverse = torch.clamp(1 / (scales.to(torch.float32) * (1 / encode)), max=_FLT_MAX)
    y = torch.clamp(x * _spread(inverse, tile_rows, rows), -e2m1.MAX, e2m1.MAX)

    if seed is None:
        codes = e2m1.encode_nearest(y)
    else:
        codes = e2m1.encode_stochastic(y, random_bytes(seed, stream, rows * blocks).view(y.shape))
    return Quantized(e2m1.pack(codes), scales, amax)


def dequantize_nvfp4(q: Quantized, rows: int, cols: int) -> Tensor:
    """The fp32 values [rows, cols] of a quantised matrix: code * block scale * amax / 2688."""
    return block_values(q, rows, cols) * tensor_scale(q.amax)


def block_values(q: Quantized, rows: int, cols: int) -> Tensor:
    """code * block scale, in fp32 [rows, cols]: at most 6 significant bits, hence exact in bf16 as well."""
    tile_rows = 1 if q.scales.shape[0] == q.codes.shape[0] else BLOCK
    values = e2m1.decode(e2m1.unpack(q.codes)) * _spread(q.scales.to(torch.float32), tile_rows, q.codes.shape[0])
    return values[:rows, :cols]


def tensor_scale(amax: Tensor) -> Tensor:
    """What `block_values` are multiplied by: amax / (448 * 6), fp32."""
    return amax / torch.full_like(amax, SCALE_MAX * e2m1.MAX)


def encode_scale(amax: Tensor) -> Tensor:
    """The tensor's encoding scale, fp32: 448 * 6 / amax, finite; 1 for an all-zero tensor."""
    # Tensor by tensor: torch turns a division of or by a Python number into a product with a reciprocal.
    scale = torch.clamp(torch.full_like(amax, SCALE_MAX * e2m1.MAX) / amax, max=_FLT_MAX)
    return torch.where((amax == 0) | (scale == 0), 1.0, scale)


def _tile_amax(x: Tensor, tile_rows: int) -> Tensor:
    """Largest magnitude of each tile_rows x 16 block of x [rows, 16 * blocks]: [ceil(rows / tile_rows), blocks]."""
    rows, cols = x.shape
    tiles = -(-rows // tile_rows)
    x = torch.nn.functional.pad(x, (0, 0, 0, tiles * tile_rows - rows))
    return x.abs().view(tiles, tile_rows, cols // BLOCK, BLOCK).amax(dim=(1, 3))


def _spread(per_block: Tensor, tile_rows: int, rows: int) -> Tensor:
    """One value a block -> one value an element, [rows, 16 * blocks]."""
    return per_block.repeat_interleave(tile_rows, 0)[:rows].repeat_interleave(BLOCK, 1)
