"""Random matrices from fixed generators: drawn in fp64 and rounded once to fp32, so that any machine draws the same."""

import torch
from torch import Tensor


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal values, fp64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(rows: int, cols: int, seed: int = 0) -> Tensor:
    """[rows, cols] fp32, standard normal."""
    return normal(rows, cols, seed=seed).float()


def student_t(rows: int, cols: int, seed: int = 0) -> Tensor:
    """[rows, cols] fp32, Student t with 3 degrees of freedom: tails so heavy that the variance of x**2 is infinite."""
    z = normal(4, rows, cols, seed=seed)
    return (z[0] / (z[1:].square().sum(0) / 3).sqrt()).float()


def octave(rows: int, band: int = 1) -> Tensor:
    """Factors [rows, 1] from 1 towards 2, fp32, the same for each band of so many rows, evenly spread on a log scale.

    MXFP4's scales are powers of two: which rule suits values of deviation 1 is chance, and another for deviation 1.4.
    """
    bands = -(-rows // band)
    return torch.exp2((torch.arange(rows, dtype=torch.float64) // band) / bands)[:, None].float()


def outlier_channels(cols: int, share: float = 1e-3) -> Tensor:
    """Which columns are outliers, bool [cols]: evenly spread, one at least."""
    count = max(1, round(cols * share))
    chosen = torch.zeros(cols, dtype=torch.bool)
    chosen[(torch.arange(count) * cols) // count + cols // (2 * count)] = True
    return chosen


def with_outliers(rows: int, cols: int, seed: int = 0, factor: float = 50.0) -> Tensor:
    """[rows, cols] fp32: standard normal, the `outlier_channels` times `factor`."""
    x = normal(rows, cols, seed=seed)
    return torch.where(outlier_channels(cols), factor * x, x).float()


def with_mean(rows: int, cols: int, ratio: float, seed: int = 0) -> Tensor:
    """[rows, cols] fp32: deviation 1 in each column; the columns' means are normal with deviation `ratio`."""
    return (normal(rows, cols, seed=seed) + ratio * normal(1, cols, seed=seed + 1)).float()
