"""MXFP4: E2M1 codes and an E8M0 scale, a power of two, for each block of 32; no tensor scale (OCP MX v1.0)."""

import torch
from torch import Tensor

from spectral_compile.formats.blocks import block_amax

BLOCK = 32
SCALES = ("floor", "ceil", "rceil", "even")
_MANTISSA = (1 << 23) - 1
_ONE_AND_A_HALF = 1 << 22  # the mantissa bits of 1.5
_BIAS = 127
_NAN = 255  # E8M0's


def block_scales(blocks: Tensor, amax: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """E8M0 scales of blocks [..., tiles, tile_rows, blocks, 32], and what the values of each block are multiplied by
    before they are rounded; both [..., tiles, 1, blocks, 1]. `amax`, of the tensor, does not matter.

    With a the block's largest magnitude and 2**E its scale, clamped to 2**-127:
    rule "floor" is the specification's, E = floor(log2 a) - 2: a maps into [4, 8), and what exceeds 6 is clipped.
    "ceil" is ceil(log2 a) - 2: a maps into (2, 4]. "rceil" is ceil(log2(a / 6)): a maps into (3, 6], so nothing is
    clipped. "even" rounds a to two significant bits first, half up: a maps into [3.5, 7).
    Where a block holds NaN or Inf the scale is NaN, and so is everything computed from the block. From 3.5 * 2**126 on
    all rules but "floor" round up to 2**128, which dequantises to Inf.
    """
    largest = block_amax(blocks)
    bits = largest.view(torch.int32)
    if rule == "even":
        bits = bits + (1 << 21)
    mantissa = bits & _MANTISSA
    biased = (bits >> 23) - 2
    if rule == "ceil":
        biased = biased + (mantissa > 0)
    if rule == "rceil":
        biased = biased + (mantissa > _ONE_AND_A_HALF)
    biased = torch.where(largest.isfinite(), biased.clamp(min=0), _NAN)
    # 2**-E, whose own exponent field is 254 - biased; never 0, as no finite a has a scale above 2**126.
    inverse = ((2 * _BIAS - biased) << 23).view(torch.float32)
    scales = biased.to(torch.uint8).view(torch.float8_e8m0fnu)
    return scales, torch.where(biased == _NAN, 0.0, inverse)
