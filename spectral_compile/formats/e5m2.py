"""MXFP4 values as E5M2 numbers: what the carrier "fp8" multiplies, in plain torch.

A code times a power of two has two significant bits, as E5M2 has three. Relative to the largest scale along k, which is
a power of two as well and comes out of the sum, values are exact down to 2**-28 of that scale. Smaller blocks lose
bits, or all of their values. E4M3 would hold 14 binades; products of either run at the same rate.
"""

import torch
from torch import Tensor

from spectral_compile.formats import e2m1

LARGEST = 13  # the exponent of the largest block scale: 6 * 2**13 is an E5M2 number, 6 * 2**14 is none
SPAN = 28  # so many binades below, 1/2 is 2**-16 and 3/2 is 3 * 2**-16: E5M2's smallest numbers
BLOCK = 32
_NAN = 255


def tops(scales: Tensor) -> Tensor:
    """The largest scale byte of each row, int32 [rows], of E8M0 scales [rows, blocks]; 255, NaN, above all others."""
    return scales.view(torch.uint8).to(torch.int32).amax(-1)


def to_e5m2(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Of MXFP4 codes [rows, blocks * 16] and scales [rows, blocks], the values relative to `tops`, [rows, blocks * 32]
    in E5M2; and the number of blocks [] that hold a value other than zero and are too small for that.
    """
    values = e2m1.decode(e2m1.unpack(codes)).unflatten(-1, (-1, BLOCK))
    below = tops(scales)[:, None, None] - scales.view(torch.uint8).to(torch.int32)[:, :, None]
    scaled = torch.ldexp(values, LARGEST - below.clamp(max=100)).to(torch.float16)
    upper = (scaled.view(torch.int16) >> 8).to(torch.int8)  # E5M2 is the upper half of fp16
    lost = ((below > SPAN) & (values != 0)).any(-1).sum()
    return upper.flatten(-2).view(torch.float8_e5m2), lost


def product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """fp32 [m, n] of codes and scales of A [m, k] and B [n, k]: what the carrier computes, but for the sums' order."""
    (a_values, _), (b_values, _) = to_e5m2(*a), to_e5m2(*b)
    sums = a_values.to(torch.float32) @ b_values.to(torch.float32).t()
    a_top, b_top = tops(a[1])[:, None], tops(b[1])[None, :]
    exponent = a_top + b_top - 2 * (127 + LARGEST)
    half = exponent >> 1
    result = torch.ldexp(torch.ldexp(sums, half), exponent - half)
    return torch.where((a_top == _NAN) | (b_top == _NAN), torch.nan, result)
