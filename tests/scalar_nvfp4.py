"""NVFP4 once more, element by element: Python integers, exact fractions, numpy scalars for fp32's roundings.

Written from the definitions (OCP MX v1.0 for E2M1, OCP FP8 for E4M3, Salmon et al. for Philox, NVIDIA's
recipe for the order of operations); shares no code with `spectral_compile.formats`: no torch arithmetic here.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

F = np.float32
FLT_MAX = np.finfo(F).max
BLOCK = 16


def decode_float(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> Fraction:
    """The magnitude that the exponent and mantissa fields of a small float stand for."""
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = Fraction(code & ((1 << mantissa_bits) - 1), 1 << mantissa_bits)
    if exponent == 0:
        return fraction * Fraction(2) ** (1 - bias)
    return (1 + fraction) * Fraction(2) ** (exponent - bias)


E2M1 = [decode_float(code, 2, 1, 1) for code in range(8)]
E4M3 = [decode_float(code, 4, 3, 7) for code in range(127)]  # 0x7F is NaN


def nearest(magnitude: Fraction, table: Sequence[Fraction]) -> int:
    """The code of the nearest entry, the even code of two equally near, the last beyond the table."""
    low = bisect_right(table, magnitude) - 1
    if low == len(table) - 1:
        return low
    below, above = magnitude - table[low], table[low + 1] - magnitude
    if below == above:
        return low if low % 2 == 0 else low + 1
    return low if below < above else low + 1


def e2m1_nearest(y: F) -> int:
    """The code 0..15 of y, infinities included."""
    magnitude = abs(float(y))
    code = 7 if magnitude > 6 else nearest(Fraction(magnitude), E2M1)
    return code | int(np.signbit(y)) << 3


def e2m1_stochastic(y: F, random_byte: int) -> int:
    """The bit model of Blackwell's cvt.rs, |y| <= 6: add a random fraction of a step, round, truncate."""
    magnitude = F(abs(y))
    step = 2 if magnitude >= 4 else 1 if magnitude >= 2 else F(0.5)
    moved = magnitude + F(random_byte) / F(256) * F(step)  # the right summand is exact: one rounding
    code = min(bisect_right(E2M1, Fraction(float(moved))) - 1, 7)
    return code | int(np.signbit(y)) << 3


def e4m3_nearest(value: F) -> int:
    """The byte of a value from 0 to 448."""
    return nearest(Fraction(float(value)), E4M3)


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Philox 4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def random_group(seed: int, stream: int, group: int) -> bytes:
    """The 16 random bytes of a group."""
    key = (seed % 2**32, (seed % 2**64) >> 32)
    return b"".join(w.to_bytes(4, "little") for w in philox((group % 2**32, group >> 32, stream, 0), key))


def tensor_encode_scale(amax: F) -> F:
    """What x is multiplied by before blocks are scaled."""
    return F(1) if amax == 0 else min(F(448 * 6) / amax, FLT_MAX)


def block_scale(block_amax: F, encode: F) -> int:
    """The E4M3 byte of a block."""
    return e4m3_nearest(min(block_amax * (encode * F(1 / 6)), F(448)))


def block_inverse(scale: int, encode: F) -> F:
    """What the elements of a block are multiplied by."""
    return min(F(1) / (F(float(E4M3[scale])) * (F(1) / encode)), FLT_MAX)


@np.errstate(over="ignore", divide="ignore")
def quantize(
    x: np.ndarray, tile_rows: int = 1, seed: int | None = None, stream: int = 0
) -> tuple[np.ndarray, np.ndarray, F]:
    """Of finite fp32 x [rows, cols]: codes [rows, 16 * blocks], E4M3 bytes [tiles, blocks], amax."""
    rows, cols = x.shape
    blocks, tiles = -(-cols // BLOCK), -(-rows // tile_rows)
    amax = max((abs(v) for v in x.flat), default=F(0))
    encode = tensor_encode_scale(amax)
    codes = np.zeros((rows, blocks * BLOCK), np.uint8)
    scales = np.zeros((tiles, blocks), np.uint8)
    for tile in range(tiles):
        of_tile = range(tile * tile_rows, min(rows, (tile + 1) * tile_rows))
        for block in range(blocks):
            of_block = range(block * BLOCK, min(cols, (block + 1) * BLOCK))
            largest = max(abs(x[i, j]) for i in of_tile for j in of_block)
            scales[tile, block] = block_scale(largest, encode)
            inverse = block_inverse(int(scales[tile, block]), encode)
            for i in of_tile:
                random = None if seed is None else random_group(seed, stream, i * blocks + block)
                for j in of_block:
                    codes[i, j] = _element(x[i, j], inverse, None if random is None else random[j % BLOCK])
    return codes, scales, amax


def _element(x: F, inverse: F, random_byte: int | None) -> int:
    y = max(min(x * inverse, F(6)), F(-6))
    return e2m1_nearest(y) if random_byte is None else e2m1_stochastic(y, random_byte)


def dequantize(codes: np.ndarray, scales: np.ndarray, amax: F, tile_rows: int = 1) -> np.ndarray:
    """fp32 values [rows, 16 * blocks]: code * block scale (exact) * (amax / 2688)."""
    factor = amax / F(2688)
    values = np.zeros(codes.shape, F)
    for (i, j), code in np.ndenumerate(codes):
        exact = E2M1[code & 7] * E4M3[scales[i // tile_rows, j // BLOCK]]
        values[i, j] = F(-float(exact) if code & 8 else float(exact)) * factor
    return values
