"""Timing on a GPU: arms in turns, by the device's own clock."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.bench_timing import Spread, orders, paired_ratio

Call = Callable[[], object]


def in_turns(calls: Mapping[str, Call], rounds: int, repeat: int = 5) -> dict[str, list[float]]:
    """Seconds of one call, `rounds` times each, in an order drawn anew in every round; the first round does not count.

    Nothing waits in between, so what the CPU does for a call is hidden behind the calls before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn, names in enumerate(orders(list(calls), rounds + 1, seed=0)):
        events = {name: (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for name in names}
        for name in names:
            calls[name]()  # what was used last is in the cache for none of them
            begin, end = events[name]
            begin.record()
            for _ in range(repeat):
                calls[name]()
            end.record()
        torch.cuda.synchronize()
        if turn:
            for name, (begin, end) in events.items():
                times[name].append(begin.elapsed_time(end) / 1e3 / repeat)
    return times


def summary(times: Mapping[str, list[float]], baseline: str) -> dict[str, Any]:
    """Seconds, and the ratio to the baseline's, round by round."""
    return {
        name: {"seconds": asdict(Spread.of(own)), "ratio": asdict(paired_ratio(own, times[baseline]))}
        for name, own in times.items()
    }
