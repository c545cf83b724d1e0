"""E2M1 codes: formats/e2m1.py in a few instructions an element, most of them on the fp32 units."""

import triton
import triton.language as tl

# An fp32 of this size ends in halves: adding it to a value rounds the value to halves, ties to even.
_HALVES = tl.constexpr(1.5 * 2**22)
_ONE = tl.constexpr(0x3F800000)  # bits of 1, of 1/2, and where fp32 keeps its exponent
_HALF = tl.constexpr(0x3F000000)
_EXPONENT = tl.constexpr(0x7F800000)


@triton.jit
def encode_nearest(y):
    """Codes (int32) of fp32 values that are not NaN: to nearest, ties to the even code; beyond 6 saturates.

    A code counts halves below 2, ones from 2 to 4 (two codes on) and twos from 4 (four codes on). Each count, rounded,
    is right where it belongs and no smaller than the right one elsewhere: the code is the least of them.
    """
    a = tl.abs(y)
    least = tl.minimum(a + _HALVES, tl.fma(a, 0.5, _HALVES + 1.0))
    least = tl.minimum(least, tl.fma(a, 0.25, _HALVES + 2.0))
    least = tl.minimum(least, _HALVES + 3.5)
    return _with_sign(least.to(tl.int32, bitcast=True) & 7, y)


@triton.jit
def encode_stochastic(y, random_byte):
    """Codes (int32) of fp32 values that are not NaN, |y| rounded up with the probability that 8 random bits (int32,
    0..255) express: random_byte / 256 of the local step is added, once rounded, and the sum truncated.
    """
    a = tl.minimum(tl.abs(y), 6.0)
    power = tl.maximum(a.to(tl.int32, bitcast=True), _ONE) & _EXPONENT  # 2**k; the step is half of it
    # With the random byte as its last bits, 2**k is larger by byte * 2**(k - 23).
    byte_steps = (power | random_byte).to(tl.float32, bitcast=True) - power.to(tl.float32, bitcast=True)
    t = tl.fma(byte_steps, 16384.0, a).to(tl.int32, bitcast=True)
    from_one_on = (t >> 22) - 252  # exponent and one bit of the mantissa
    return _with_sign(tl.maximum(from_one_on, (t >= _HALF).to(tl.int32)), y)


@triton.jit
def round_to_nearest(a):
    """The magnitudes that `encode_nearest` has codes for, of fp32 magnitudes."""
    a = tl.minimum(a, 6.0)
    power = tl.maximum(a.to(tl.int32, bitcast=True), _ONE) & _EXPONENT
    addend = (power + (22 << 23)).to(tl.float32, bitcast=True)  # ends in what is the step at |a|
    return (a + addend) - addend


@triton.jit
def decode(codes):
    """fp32 values of codes 0..15 (int32)."""
    # As the bits of an fp32 a magnitude's code is its value, subnormals and all, with another bias.
    magnitude = ((codes & 7) << 22).to(tl.float32, bitcast=True) * 2.0**126
    return (magnitude.to(tl.int32, bitcast=True) | ((codes & 8) << 28)).to(tl.float32, bitcast=True)


@triton.jit
def _with_sign(magnitude_code, y):
    return magnitude_code | ((y.to(tl.uint32, bitcast=True) >> 28) & 8).to(tl.int32)
