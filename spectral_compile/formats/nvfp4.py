"""NVFP4: E2M1 codes, an E4M3 scale for each block of 16, one fp32 scale a tensor.

The formulas, and the order of their operations, are those of NVIDIA's published recipe (Pretraining LLMs with
NVFP4, 2025): multiplying where they multiply and dividing where they divide decides some of the scale bytes.
"""

import torch
from torch import Tensor

from spectral_compile.formats import e2m1
from spectral_compile.formats.blocks import block_amax, block_sum

BLOCK = 16
SCALE_MAX = 448.0  # the largest E4M3 value
SCALES = ("amax", "headroom", "four_six")
FLT_MAX = torch.finfo(torch.float32).max


def block_scales(blocks: Tensor, amax: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """E4M3 scales of blocks [..., tiles, tile_rows, blocks, 16] in a tensor with the largest magnitude `amax`, and what
    the values of each block are multiplied by before they are rounded; both [..., tiles, 1, blocks, 1].

    rule "amax" maps a block's largest magnitude to 6, as closely as E4M3 can. "headroom" makes scales 17/16 as large:
    then rounding a scale, by 1/17 at most unless it is subnormal, never pushes a value beyond 6, and clipping no longer
    biases stochastic rounding.
    "four_six" maps the largest magnitude to 4 where that leaves the smaller squared error ("Four Over Six", 2025).
    """
    encode = encode_scale(amax)
    exact = block_amax(blocks) * (encode * (1 / 6))
    six = _to_e4m3(exact * 1.0625 if rule == "headroom" else exact)
    if rule == "four_six":
        four = _to_e4m3(exact * 1.5)
        six = torch.where(_squared_error(blocks, four, encode) < _squared_error(blocks, six, encode), four, six)
    return six.to(torch.float8_e4m3fn), _inverse(six, encode)


def tensor_scale(amax: Tensor) -> Tensor:
    """What code * block scale is multiplied by: amax / (448 * 6), fp32.

    Where `encode_scale` is as large as it can be, for an amax below 7.9e-36, this is its inverse; the published
    amax / 2688 goes on falling there, and values would come back too small.
    """
    largest = torch.full_like(amax, SCALE_MAX * e2m1.MAX)
    return torch.clamp(amax, min=SCALE_MAX * e2m1.MAX / FLT_MAX) / largest


def encode_scale(amax: Tensor) -> Tensor:
    """The tensor's encoding scale, fp32: 448 * 6 / amax, finite; 1 for an all-zero tensor."""
    # Tensor by tensor: torch turns a division of or by a Python number into a product with a reciprocal.
    scale = torch.clamp(torch.full_like(amax, SCALE_MAX * e2m1.MAX) / amax, max=FLT_MAX)
    return torch.where((amax == 0) | (scale == 0), 1.0, scale)


def _to_e4m3(scale: Tensor) -> Tensor:
    """Rounded to E4M3, in fp32."""
    return torch.clamp(scale, max=SCALE_MAX).to(torch.float8_e4m3fn).to(torch.float32)


def _inverse(scale: Tensor, encode: Tensor) -> Tensor:
    return torch.clamp(1 / (scale * (1 / encode)), max=FLT_MAX)


def _squared_error(blocks: Tensor, scale: Tensor, encode: Tensor) -> Tensor:
    """Of each block rounded to nearest with this scale, in units that neither overflow nor depend on the tensor's."""
    y = torch.clamp(blocks * _inverse(scale, encode), -e2m1.MAX, e2m1.MAX)
    error = e2m1.decode(e2m1.encode_nearest(y)) * scale - blocks * encode
    return block_sum(error * error)
