"""MXFP4's scales by what their rules mean (OCP MX v1.0 and the three variants in use), in exact arithmetic."""

from fractions import Fraction
from math import floor

from tests.scalar.floats import ceil_log2, floor_log2

BLOCK = 32
SCALES = ("floor", "ceil", "rceil", "even")
NAN = 255


def scale_byte(block_amax: float, rule: str) -> int:
    """The E8M0 byte of a block with this largest magnitude, a finite number."""
    if block_amax == 0:
        return 0
    return min(max(exponent(Fraction(float(block_amax)), rule), -127), 128) + 127


def exponent(a: Fraction, rule: str) -> int:
    """The exponent of the scale of a block with largest magnitude a > 0, before it is clamped."""
    if rule == "floor":
        return floor_log2(a) - 2
    if rule == "ceil":
        return ceil_log2(a) - 2
    if rule == "rceil":
        return ceil_log2(a / 6)
    half = Fraction(2) ** (floor_log2(a) - 1)  # what the second significant bit of a stands for
    return floor_log2(floor(a / half + Fraction(1, 2)) * half) - 2
