"""Philox 4x32-10: formats/philox.py, a counter for each group of sixteen elements."""

import triton
import triton.language as tl

from spectral_compile.formats import philox as contract

_MULTIPLIER_0, _MULTIPLIER_1 = (tl.constexpr(m) for m in contract._MULTIPLIER)
_WEYL_0, _WEYL_1 = (tl.constexpr(w) for w in contract._WEYL)
_ROUNDS = tl.constexpr(contract._ROUNDS)


@triton.jit
def random_words(seed, stream, group):
    """Four words (uint32) for each group, of its number in the tensor (int64): byte j of the group's sixteen is byte
    j % 4 of word j // 4. seed is an int64, stream the 32 bits of a number below 2**32.
    """
    c0 = group.to(tl.uint32)
    c1 = (group >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + stream.to(tl.uint32, bitcast=True)
    c3 = tl.zeros_like(c0)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        product0 = c0.to(tl.uint64) * _MULTIPLIER_0
        product1 = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 = k0 + _WEYL_0
        k1 = k1 + _WEYL_1
    return c0, c1, c2, c3


@triton.jit
def random_byte(words, j: tl.constexpr):
    """Byte j of each group, int32."""
    return ((words[j // 4] >> (8 * (j % 4))) & 0xFF).to(tl.int32)
