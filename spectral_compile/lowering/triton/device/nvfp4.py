"""NVFP4's scales: formats/nvfp4.py. Divisions are div_rn: a plain / is an approximation on GPUs."""

import triton
import triton.language as tl

from spectral_compile.formats import nvfp4 as contract
from spectral_compile.lowering.triton.device.e2m1 import round_to_nearest
from spectral_compile.lowering.triton.device.groups import sum_of_blocks, sum_of_neighbours, to_groups

_MAX = tl.constexpr(448.0 * 6.0)
_FLT_MAX = tl.constexpr(contract.FLT_MAX)
_LEAST_AMAX = tl.constexpr(448.0 * 6.0 / contract.FLT_MAX)
_SIXTH = tl.constexpr(1 / 6)
_LEAST_NORMAL_E4M3 = tl.constexpr(2.0**-6)
_INFINITY = tl.constexpr(0x7F800000)
_NAN_BYTE = tl.constexpr(0x7F)


@triton.jit
def tensor_scale(amax):
    """What code * block scale is multiplied by; NaN for NaN."""
    return tl.div_rn(tl.maximum(amax, _LEAST_AMAX, propagate_nan=tl.PropagateNan.ALL), _MAX)


@triton.jit
def block_scales(
    xs,
    largest,
    amax,
    RULE: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
):
    """E4M3 bytes (int32) of blocks, and what their values are multiplied by before rounding, 0 where all is poisoned;
    [ROWS / TILE_ROWS, GROUPS]. largest: the bits of each block's largest magnitude; xs: sixteen tensors [ROWS, GROUPS].
    """
    encode = tl.where(amax == 0.0, 1.0, tl.minimum(tl.div_rn(_MAX, amax), _FLT_MAX))
    exact = largest.to(tl.float32, bitcast=True) * (encode * _SIXTH)
    scale = _round_to_e4m3(exact * 1.0625 if RULE == "headroom" else exact)
    inverse = _inverse(scale, encode)
    if RULE == "four_six":
        four = _round_to_e4m3(exact * 1.5)
        inverse_of_four = _inverse(four, encode)
        error = _squared_error(xs, scale, inverse, encode, ROWS, GROUPS, TILE_ROWS)
        better = _squared_error(xs, four, inverse_of_four, encode, ROWS, GROUPS, TILE_ROWS) < error
        scale = tl.where(better, four, scale)
        inverse = tl.where(better, inverse_of_four, inverse)
    # Where the tensor's maximum is that of a sample, a block may still hold what the sample did not.
    byte = tl.where(largest > _INFINITY, _NAN_BYTE, _byte(scale))
    inverse = tl.where(largest > _INFINITY, 0.0, inverse)
    healthy = tl.abs(amax) < float("inf")
    return tl.where(healthy, byte, 0), tl.where(healthy, inverse, 0.0)


@triton.jit
def decode_scales(bytes):
    """fp32 values of E4M3 bytes (int32, positive)."""
    normal = ((bytes << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(bytes < 8, bytes.to(tl.float32) * (2.0**-9), normal)
    return tl.where(bytes == _NAN_BYTE, float("nan"), value)


@triton.jit
def _round_to_e4m3(value):
    """fp32 values from 0 on to what E4M3 holds: to nearest, ties to even; beyond 448 saturates."""
    v = tl.minimum(value, 448.0)
    bits = v.to(tl.int32, bitcast=True)
    normal = ((bits + (0x7FFFF + ((bits >> 20) & 1))) & -0x100000).to(tl.float32, bitcast=True)
    subnormal = (v + 16384.0) - 16384.0  # an fp32 of this size ends in 2**-9, the step of E4M3's subnormals
    return tl.where(v < _LEAST_NORMAL_E4M3, subnormal, normal)


@triton.jit
def _byte(value):
    """The bytes of values that `_round_to_e4m3` gave."""
    normal = (value.to(tl.int32, bitcast=True) >> 20) - (120 << 3)
    return tl.where(value < _LEAST_NORMAL_E4M3, (value * 512.0).to(tl.int32), normal)


@triton.jit
def _inverse(scale, encode):
    return tl.minimum(tl.div_rn(1.0, scale * tl.div_rn(1.0, encode)), _FLT_MAX)


@triton.jit
def _squared_error(xs, scale, inverse, encode, ROWS: tl.constexpr, GROUPS: tl.constexpr, TILE_ROWS: tl.constexpr):
    """What rounding blocks to nearest with these scales costs, as formats/nvfp4.py sums it; signs do not matter."""
    scale = to_groups(scale, ROWS, GROUPS, TILE_ROWS, 1)
    inverse = to_groups(inverse, ROWS, GROUPS, TILE_ROWS, 1)
    errors = ()
    for j in tl.static_range(16):
        a = tl.abs(xs[j])
        error = round_to_nearest(a * inverse) * scale - a * encode
        errors = errors + (error * error,)
    return sum_of_blocks(errors, ROWS, GROUPS) if TILE_ROWS > 1 else sum_of_neighbours(errors)
