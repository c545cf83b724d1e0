"""Is the difference of two means more than luck? Welch's t-test, from Python's standard library."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

INTERVALS = 1000  # of Simpson's rule; even


@dataclass(frozen=True)
class Difference:
    """Of two means, first minus second, in the unit of the samples.

    error: its standard error. t: the difference in units of that. freedom: Welch and Satterthwaite's degrees.
    p: how often samples of one and the same mean would differ by as much, 0 .. 1.
    """

    difference: float
    error: float
    t: float
    freedom: float
    p: float


def compare(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Welch's test: the samples may differ in size and in variance (Welch, Biometrika 34, 1947).

    None where a sample says nothing about luck: a single value, or one value repeated, as rounding to nearest gives.
    """
    if min(len(set(first)), len(set(second))) < 2:
        return None
    a, b = (statistics.variance(sample) / len(sample) for sample in (first, second))
    difference, error = statistics.fmean(first) - statistics.fmean(second), math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    t = difference / error
    return Difference(difference, error, t, freedom, two_sided(t, freedom))


def two_sided(t: float, freedom: float) -> float:
    """The probability that Student's t with at least one degree of freedom is farther from 0 than `t`.

    With t = sqrt(freedom) tan(angle) its density is proportional to cos(angle)^(freedom - 1), on a bounded interval.
    """
    start = math.atan(abs(t) / math.sqrt(freedom))
    width = (math.pi / 2 - start) / INTERVALS
    weights = [1, *(4 if i % 2 else 2 for i in range(1, INTERVALS)), 1]
    # pi/2 - angle, so that the end is exactly 0: cos(pi/2) is a rounding error, which may be negative
    values = (math.sin(width * (INTERVALS - i)) ** (freedom - 1) for i in range(INTERVALS + 1))
    tail = width / 3 * sum(w * v for w, v in zip(weights, values, strict=True))
    half = math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    return min(1.0, 2 * tail / (math.sqrt(math.pi) * math.exp(half)))
