"""Both formats block by block: finite matrices to codes, scale bytes and the tensor's scale, and back."""

from bisect import bisect_right
from fractions import Fraction
from math import ldexp
from typing import NamedTuple

import numpy as np

from tests.scalar import mxfp4, nvfp4
from tests.scalar.floats import E2M1, E2M1_FLOATS, E4M3, E8M0, FLT_MAX, F, nearest, to_bf16
from tests.scalar.hadamard import SIZE, butterflies
from tests.scalar.philox import GROUP, random_group

BLOCK = {"nvfp4": nvfp4.BLOCK, "mxfp4": mxfp4.BLOCK}
SCALES = {"nvfp4": nvfp4.SCALES, "mxfp4": mxfp4.SCALES}
SCALE_VALUES = {"nvfp4": E4M3, "mxfp4": E8M0}


class Scalar(NamedTuple):
    """codes [rows, blocks * block], one a byte; scales [tiles, blocks], bytes; tensor_scale."""

    codes: np.ndarray
    scales: np.ndarray
    tensor_scale: F


@np.errstate(over="ignore", under="ignore", divide="ignore")
def quantize(
    x: np.ndarray,
    format: str,
    rule: str | None = None,
    tile_rows: int = 1,
    hadamard: bool = False,
    seed: int | None = None,
    stream: int = 0,
) -> Scalar:
    """Of finite fp32 x [rows, cols], along cols."""
    rows, block = x.shape[0], BLOCK[format]
    if hadamard:
        x = _padded(x, 1, SIZE)
        x = np.array([to_bf16(v) for v in butterflies(x).flat], F).reshape(x.shape)
    x = _padded(x, tile_rows, block)
    amax = F(1) if format == "mxfp4" else np.abs(x).max(initial=F(0))
    tiles, blocks = x.shape[0] // tile_rows, x.shape[1] // block
    y = np.zeros_like(x)
    scales = np.zeros((tiles, blocks), np.uint8)
    for tile in range(tiles):
        for i in range(blocks):
            where = np.s_[tile * tile_rows : (tile + 1) * tile_rows, i * block : (i + 1) * block]
            scales[tile, i], y[where] = _scaled(x[where], amax, format, rule or SCALES[format][0])
    y = y[:rows]
    return Scalar(_nearest(y) if seed is None else _stochastic(y, seed, stream), scales, _tensor_scale(amax, format))


def dequantize(q: Scalar, format: str, tile_rows: int = 1) -> np.ndarray:
    """fp32 values [rows, blocks * block]: code * block scale, exact or beyond fp32, times the tensor's scale."""
    values = np.zeros(q.codes.shape, F)
    for (i, j), code in np.ndenumerate(q.codes):
        exact = E2M1[code & 7] * SCALE_VALUES[format][q.scales[i // tile_rows, j // BLOCK[format]]]
        magnitude = F(exact) if exact < 2**128 else F("inf")
        assert exact >= 2**128 or Fraction(float(magnitude)) == exact
        values[i, j] = -magnitude if code & 8 else magnitude
    return values * q.tensor_scale


def _tensor_scale(amax: F, format: str) -> F:
    """NVFP4's amax / 2688 falls no further where 2688 / amax is the largest fp32 number."""
    return max(amax, F(2688) / FLT_MAX) / F(2688) if format == "nvfp4" else F(1)


def _padded(x: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """With zeros to multiples of rows and cols."""
    return np.pad(x, ((0, -x.shape[0] % rows), (0, -x.shape[1] % cols)))


def _scaled(block: np.ndarray, amax: F, format: str, rule: str) -> tuple[int, np.ndarray]:
    """A block's scale byte, and its elements ready to be rounded, in [-6, 6]."""
    if format == "mxfp4":
        byte = mxfp4.scale_byte(np.abs(block).max(), rule)
        exact = [ldexp(float(v), 127 - byte) for v in block.flat]  # in doubles
        y = np.array(exact).reshape(block.shape)
    else:
        encode = nvfp4.encode_scale(amax)
        byte = nvfp4.block_scale(block, encode, rule)
        y = block * nvfp4.inverse(byte, encode)
    return byte, np.clip(y, -6, 6).astype(F)


def _nearest(y: np.ndarray) -> np.ndarray:
    codes = [nearest(v, E2M1_FLOATS) for v in np.abs(y).ravel().tolist()]
    return np.array(codes, np.uint8).reshape(y.shape) | np.signbit(y).astype(np.uint8) << 3


def _stochastic(y: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """As `floats.e2m1_stochastic`, for all elements: the random bytes follow the stored, padded layout."""
    random = b"".join(random_group(seed, stream, group) for group in range(y.size // GROUP))
    a = np.abs(y)
    step = np.select([a >= 4, a >= 2], [F(2), F(1)], F(0.5))
    moved = a + np.frombuffer(random, np.uint8).reshape(y.shape).astype(F) / F(256) * step
    codes = [bisect_right(E2M1_FLOATS, v) - 1 for v in moved.ravel().tolist()]
    return np.array(codes, np.uint8).reshape(y.shape) | np.signbit(y).astype(np.uint8) << 3
