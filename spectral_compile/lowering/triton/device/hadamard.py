"""The random Hadamard transform of groups, rounded to bf16: formats/hadamard.py, in its order of sums."""

import triton
import triton.language as tl

from spectral_compile.formats.hadamard import SIGNS

_NEGATIVE = tl.constexpr(sum(1 << j for j, sign in enumerate(SIGNS) if sign < 0))
_INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def transform(xs):
    """Sixteen tensors times diag(signs) H16 / 4, fp32."""
    signed = ()  # by a product: Triton negates by 0 - x, which makes 0 of 0
    for j in tl.static_range(16):
        signed = signed + (xs[j] * -1.0 if (_NEGATIVE >> j) & 1 else xs[j],)
    return _scale(_butterflies(_butterflies(_butterflies(_butterflies(signed, 1), 2), 4), 8))


@triton.jit
def round_each_to_bf16(xs):
    """Sixteen fp32 tensors to nearest in bf16, ties to even; a NaN becomes anything."""
    rounded = ()
    for j in tl.static_range(16):
        rounded = rounded + (_round_bits(xs[j].to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True),)
    return rounded


@triton.jit
def round_magnitude_bits(bits):
    """The bits of a magnitude once rounded to bf16; above those of infinity for NaN, as before."""
    return tl.where(bits > _INFINITY, bits, _round_bits(bits))


@triton.jit
def _round_bits(bits):
    return (bits + (0x7FFF + ((bits >> 16) & 1))) & -65536


@triton.jit
def _butterflies(xs, DISTANCE: tl.constexpr):
    """Of elements that are DISTANCE apart, the sum and the difference."""
    out = ()
    for j in tl.static_range(16):
        a = xs[j & ~DISTANCE]
        b = xs[j | DISTANCE]
        out = out + (a - b if j & DISTANCE else a + b,)
    return out


@triton.jit
def _scale(xs):
    scaled = ()
    for j in tl.static_range(16):
        scaled = scaled + (xs[j] * 0.25,)
    return scaled
