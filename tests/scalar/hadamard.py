"""The Hadamard transform twice: exactly, as the matrix product that defines it, and in the documented fp32 order."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tests.scalar.floats import F

SIZE = 16
SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]  # of NVIDIA's recipe


def exact(group: Sequence[float]) -> list[Fraction]:
    """16 values times diag(signs) H / 4, H[i][j] = (-1)**popcount(i & j)."""
    signed = [Fraction(float(v)) * s for v, s in zip(group, SIGNS, strict=True)]
    return [sum(v * (-1) ** (i & j).bit_count() for i, v in enumerate(signed)) / 4 for j in range(SIZE)]


def butterflies(x: np.ndarray) -> np.ndarray:
    """fp32 x [..., 16 * groups] in four rounds of sums and differences: of neighbours, then of values two, four and
    eight apart.
    """
    v = x.reshape(-1, SIZE) * np.array(SIGNS, F)
    for distance in (1, 2, 4, 8):
        for i in range(SIZE):
            if not i & distance:
                a, b = v[:, i].copy(), v[:, i + distance].copy()
                v[:, i], v[:, i + distance] = a + b, a - b
    return (v * F(0.25)).reshape(x.shape)
