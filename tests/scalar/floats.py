"""Small floats from the meaning of their bit fields (OCP FP8 for E4M3, OCP MX v1.0 for E2M1 and E8M0).

Nothing in tests/scalar shares code with `spectral_compile.formats`, or does arithmetic in torch: Python integers and
exact fractions, Python floats (doubles) only where they are exact, numpy fp32 only where the contract rounds to fp32.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import copysign

import numpy as np

F = np.float32
FLT_MAX = np.finfo(F).max


def decode_float(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> Fraction:
    """The magnitude that the exponent and mantissa fields of a small float stand for."""
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = Fraction(code & ((1 << mantissa_bits) - 1), 1 << mantissa_bits)
    if exponent == 0:
        return fraction * Fraction(2) ** (1 - bias)
    return (1 + fraction) * Fraction(2) ** (exponent - bias)


E2M1 = [decode_float(code, 2, 1, 1) for code in range(8)]
E4M3 = [decode_float(code, 4, 3, 7) for code in range(127)]  # 0x7F is NaN
E8M0 = [Fraction(2) ** (byte - 127) for byte in range(255)]  # 0xFF is NaN

# The same as doubles, which hold them, and twice a value, and the sum of two neighbours, exactly.
E2M1_FLOATS = [float(v) for v in E2M1]
E4M3_FLOATS = [float(v) for v in E4M3]


def ties(table: Sequence[Fraction]) -> list[Fraction]:
    """The values half-way between neighbours."""
    return [(low + high) / 2 for low, high in pairwise(table)]


def nearest(magnitude: float, table: Sequence[float]) -> int:
    """The code of the nearest entry, the even code of two equally near, the last beyond the table.

    For doubles with an exact table of doubles, or for fractions with a table of fractions.
    """
    low = bisect_right(table, magnitude) - 1
    if low == len(table) - 1:
        return low
    twice, both = 2 * magnitude, table[low] + table[low + 1]
    if twice == both:
        return low if low % 2 == 0 else low + 1
    return low if twice < both else low + 1


def e2m1_nearest(y: float) -> int:
    """The code 0..15 of y, infinities included."""
    y = float(y)
    return nearest(abs(y), E2M1_FLOATS) | (8 if copysign(1, y) < 0 else 0)


def e2m1_stochastic(y: F, random_byte: int) -> int:
    """The bit model of Blackwell's cvt.rs, |y| <= 6: add a random fraction of a step, round, truncate."""
    magnitude = F(abs(y))
    step = 2 if magnitude >= 4 else 1 if magnitude >= 2 else F(0.5)
    moved = magnitude + F(random_byte) / F(256) * F(step)  # the right summand is exact: one rounding
    return bisect_right(E2M1_FLOATS, float(moved)) - 1 | int(np.signbit(y)) << 3


def e4m3_nearest(value: F) -> int:
    """The byte of a value from 0 to 448."""
    return nearest(float(value), E4M3_FLOATS)


def floor_log2(value: Fraction) -> int:
    """The greatest integer e with 2**e <= value."""
    e = value.numerator.bit_length() - value.denominator.bit_length()  # that or one more than e
    return e if Fraction(2) ** e <= value else e - 1


def ceil_log2(value: Fraction) -> int:
    """The smallest integer e with value <= 2**e."""
    e = floor_log2(value)
    return e if Fraction(2) ** e == value else e + 1


def to_bf16(value: F) -> F:
    """A finite fp32 number rounded to bf16, ties to even."""
    bits = int(np.array(value, F).view(np.uint32))
    bits += 0x7FFF + (bits >> 16 & 1)
    return np.array(bits & 0xFFFF0000, np.uint32).view(F)[()]
