"""Timing arms in turns, and what is made of the times.

In every round each arm takes one step, in an order that is drawn anew: what slows the machine for a while slows all
arms, and none always follows the same other one. Ratios are of two times of one round, and their median is reported.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

PARTS = ("forward", "backward", "step")


class Steps(Protocol):
    """What can be timed: see `bench_arms.Runner`."""

    def forward(self) -> Tensor: ...

    def backward(self, output: Tensor) -> None: ...

    def zero_grad(self) -> None: ...


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step; `step` is forward, backward and freeing the gradients."""

    forward: float
    backward: float
    step: float


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def timed_step(arm: Steps) -> StepTimes:
    start = time.perf_counter()
    output = arm.forward()
    between = time.perf_counter()
    arm.backward(output)
    after = time.perf_counter()
    del output
    arm.zero_grad()
    return StepTimes(between - start, after - between, time.perf_counter() - start)


def in_turns(arms: Mapping[str, Steps], rounds: int, seed: int = 0) -> dict[str, list[StepTimes]]:
    """One step of every arm in every round, after one round that does not count."""
    times: dict[str, list[StepTimes]] = {name: [] for name in arms}
    for turn, names in enumerate(orders(list(arms), rounds + 1, seed)):
        gc.collect()
        with without_garbage_collection():
            taken = {name: timed_step(arms[name]) for name in names}
        if turn:
            for name in arms:
                times[name].append(taken[name])
    return times


def orders(names: Sequence[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """For each round the arms in an order of its own."""
    chance = random.Random(seed)
    for _ in range(rounds):
        yield chance.sample(names, len(names))


def summary(times: Mapping[str, Sequence[StepTimes]], baseline: str) -> dict[str, dict[str, Any]]:
    """For each arm and part of the step, seconds, the ratio to the baseline's (None where it did not run), and the
    seconds of all rounds, in their order.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, steps in times.items():
        rows[name] = {}
        for part in PARTS:
            own = [getattr(step, part) for step in steps]
            other = [getattr(step, part) for step in times.get(baseline, ())]
            ratio = asdict(paired_ratio(own, other)) if other else None
            rows[name][part] = {"seconds": asdict(Spread.of(own)), "ratio": ratio, "rounds": own}
    return rows


def paired_ratio(own: Sequence[float], other: Sequence[float]) -> Spread:
    """Of the ratios round by round."""
    return Spread.of([a / b for a, b in zip(own, other, strict=True)])


def paired_difference(own: Sequence[float], other: Sequence[float]) -> float:
    """The median of the differences round by round."""
    return statistics.median(a - b for a, b in zip(own, other, strict=True))


def kernel_times(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of single calls in turns, after two rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with without_garbage_collection():
        for turn in range(rounds + 2):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= 2:
                    times[name].append(time.perf_counter() - start)
    return times


def medians(times: Mapping[str, Iterable[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """It takes a tenth of a second, and would count against whoever is running."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
