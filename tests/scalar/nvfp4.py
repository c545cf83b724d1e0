"""NVFP4 block by block: the order of operations of NVIDIA's recipe, in fp32 scalars."""

from collections.abc import Sequence

import numpy as np

from tests.scalar.floats import E2M1_FLOATS, E4M3_FLOATS, FLT_MAX, F, e2m1_nearest, e4m3_nearest

BLOCK = 16
SCALES = ("amax", "headroom", "four_six")


def encode_scale(amax: F) -> F:
    """What x is multiplied by before blocks are scaled."""
    return F(1) if amax == 0 else min(F(448 * 6) / amax, FLT_MAX)


def inverse(scale: int, encode: F) -> F:
    """What the elements of a block with this E4M3 byte are multiplied by."""
    return min(F(1) / (F(E4M3_FLOATS[scale]) * (F(1) / encode)), FLT_MAX)


def block_scale(block: np.ndarray, encode: F, rule: str) -> int:
    """The E4M3 byte of a block [tile_rows, 16]."""
    exact = np.abs(block).max() * (encode * F(1 / 6))
    if rule == "headroom":
        exact = exact * F(17 / 16)
    six = e4m3_nearest(min(exact, F(448)))
    if rule != "four_six":
        return six
    four = e4m3_nearest(min(exact * F(1.5), F(448)))
    return four if squared_error(block, four, encode) < squared_error(block, six, encode) else six


def squared_error(block: np.ndarray, scale: int, encode: F) -> F:
    """Of a block rounded to nearest with this scale, in units of 1 / encode."""
    return block_sum(squares(block, scale, encode))


def squares(block: np.ndarray, scale: int, encode: F) -> np.ndarray:
    """Each element's squared error, in fp32."""
    y = np.clip(block * inverse(scale, encode), F(-6), F(6))
    values = [-E2M1_FLOATS[c & 7] if c & 8 else E2M1_FLOATS[c] for c in map(e2m1_nearest, y.ravel().tolist())]
    error = np.array(values, F).reshape(block.shape) * F(E4M3_FLOATS[scale]) - block * encode
    return error * error


def block_sum(values: np.ndarray) -> F:
    """Of a block [tile_rows, 16]: down the rows first, then across, always neighbours."""
    return sum_of_pairs([sum_of_pairs(list(column)) for column in values.T])


def sum_of_pairs(values: Sequence[F]) -> F:
    """The sum of a power of two of values: neighbours are added until one is left."""
    if len(values) == 1:
        return values[0]
    return sum_of_pairs([a + b for a, b in zip(values[::2], values[1::2], strict=True)])
