"""MXFP4's scales: formats/mxfp4.py."""

import triton
import triton.language as tl

_INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def block_scales(largest, RULE: tl.constexpr):
    """E8M0 bytes (int32) of blocks from the bits of their largest magnitudes, and what their values are multiplied by
    before rounding: 0 where the block is poisoned.
    """
    poisoned = largest >= _INFINITY
    bits = tl.minimum(largest, _INFINITY)
    if RULE == "even":
        bits += 1 << 21
    mantissa = bits & 0x7FFFFF
    biased = (bits >> 23) - 2
    if RULE == "ceil":
        biased += (mantissa > 0).to(tl.int32)
    if RULE == "rceil":
        biased += (mantissa > 0x400000).to(tl.int32)
    biased = tl.maximum(biased, 0)
    # 2**-E has the exponent field 254 - byte, never 0: no finite value has a scale above 2**126.
    inverse = ((254 - biased) << 23).to(tl.float32, bitcast=True)
    return tl.where(poisoned, 255, biased), tl.where(poisoned, 0.0, inverse)


@triton.jit
def decode_scales(bytes):
    """fp32 values of E8M0 bytes (int32)."""
    power = tl.where(bytes == 0, 1 << 22, bytes << 23).to(tl.float32, bitcast=True)  # 2**-127 is subnormal
    return tl.where(bytes == 255, float("nan"), power)
