"""What torch's profiler says of a step: which operators its time goes to."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent

from benchmarks.bench_arms import Runner

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
_ATTENTION = ("aten::_scaled_dot_product",)
INSIDE = "  of which torch.mm"
BEFORE, AFTER = "  of which before it: codes to values", "  of which after it: scales and rank-one term"
PARTS = (BEFORE, INSIDE, AFTER)


def profiled(runner: Runner, steps: int) -> dict[str, Any]:
    """Seconds a step, on average, and seconds and calls of the operators in it.

    Operators include what they call; spectral::scaled_mm is also divided into its product and what it does before and
    after. The loops that Inductor makes have no names here: they are what is left of the step.
    """
    runner.step()
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            runner.step()
        seconds = time.perf_counter() - start
    operators: dict[str, dict[str, float]] = {}
    for event in profile.events() or ():
        for name, microseconds in _shares(event):
            row = operators.setdefault(name, {"seconds": 0.0, "calls": 0.0})
            row["seconds"] += microseconds / 1e6 / steps
            row["calls"] += 1 / steps
    named = sum(row["seconds"] for name, row in operators.items() if name not in PARTS)
    operators["the rest"] = {"seconds": max(0.0, seconds / steps - named), "calls": 0.0}
    return {"step_seconds": seconds / steps, "operators": operators}


def _shares(event: FunctionEvent) -> Iterator[tuple[str, float]]:
    """Under which names an event counts, with microseconds; none for those inside another that counts."""
    around = event.cpu_parent
    while around is not None and not around.name.startswith(("spectral::", *_ATTENTION)):
        around = around.cpu_parent
    if event.name in _PRODUCTS:
        if around is None:
            yield "torch.mm", event.cpu_time_total
        elif around.name == "spectral::scaled_mm":
            yield INSIDE, event.cpu_time_total
            yield BEFORE, event.time_range.start - around.time_range.start
            yield AFTER, around.time_range.end - event.time_range.end
    elif around is None and event.name.startswith(_ATTENTION):
        yield "attention", event.cpu_time_total
    elif around is None and event.name.startswith("spectral::"):
        yield event.name, event.cpu_time_total
