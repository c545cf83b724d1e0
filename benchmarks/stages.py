"""Where a step's time goes, kernel by kernel: alone, and inside the step as torch's profiler sees it.

    python -m benchmarks.stages [--model block] [--recipe averis] [--rounds 15] [--threads 2]

A kernel is timed in turns with what it is held against: quantisers and means with a copy, in cache, of as many bytes as
they read or write, and with a copy in memory; products with `torch.mm` of bf16 matrices that lie the same way. Where a
mean is taken out or added back, also with the same call without it.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.bench_arms import ARMS, BASELINE, Runner
from benchmarks.bench_capture import Call, calls_of
from benchmarks.bench_models import MODELS, Sizes, workload
from benchmarks.bench_profile import profiled
from benchmarks.bench_timing import Spread, kernel_times, medians, paired_difference, paired_ratio
from spectral_compile.lowering import cpu

COPY_MIB = 256  # of the copy in memory: more than a cache holds


def main() -> None:
    from benchmarks.stages_tables import stage_tables

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="block", choices=list(MODELS))
    parser.add_argument("--recipe", default="averis")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cpu.prepare()
    work = workload(arguments.model, Sizes())
    names = (BASELINE, f"spectral {arguments.recipe}")
    runners = {name: Runner(ARMS[name], work) for name in names}
    record = stages(runners[names[1]], arguments.rounds)
    record["profile"] = {name: profiled(runner, steps=3) for name, runner in runners.items()}
    for table in stage_tables(record):
        Console(width=170).print(table)


def stages(runner: Runner, rounds: int, copy_mib: int = COPY_MIB) -> dict[str, Any]:
    """The record: every kernel of a step, and what they come to."""
    runner.step()
    calls = calls_of(runner.step)
    memory = _seconds_a_byte(copy_mib << 20)
    kernels = [_measured(call, count, rounds, memory) for call, count in calls.items()]
    kernels.sort(key=lambda row: -row["count"] * row["seconds"]["median"])
    return {
        "recipe": runner.arm.recipe,
        "memory_bytes_a_second": 1 / memory,
        "kernels": kernels,
        "totals": totals(kernels),
    }


def totals(kernels: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of a step by kind of kernel; of products also those of torch.mm; and what the mean's removal adds.

    The last: means, and by how much centred quantisers and products with a rank-one term exceed those without. What
    multiplies the mean, and adds it up, Inductor fuses with other work: only whole steps show it.
    """
    sums: dict[str, float] = {"mean removal": 0.0}
    for row in kernels:
        seconds = row["count"] * row["seconds"]["median"]
        sums[row["name"]] = sums.get(row["name"], 0.0) + seconds
        if "mm_seconds" in row:
            sums["torch.mm"] = sums.get("torch.mm", 0.0) + row["count"] * row["mm_seconds"]
        if row["name"].startswith("token_mean"):
            sums["mean removal"] += seconds
        sums["mean removal"] += row["count"] * row.get("mean_seconds", 0.0)
    return sums


def _measured(call: Call, count: int, rounds: int, memory: float) -> dict[str, Any]:
    """Times in seconds; x_...: median ratios; mean_seconds: what taking the mean out, or adding it back, adds."""
    against: dict[str, Callable[[], object]] = {"own": _thunk(call)}
    if call.name == "scaled_mm":
        against["mm"] = _mm(call)
    else:
        size = _bytes(call)
        against["copy"] = _copy(size)
    if call.without_mean() != call:
        against["without mean"] = _thunk(call.without_mean())
    times = kernel_times(against, rounds)
    own = times["own"]
    row: dict[str, Any] = {"name": call.name, "what": call.title(), "count": count, "seconds": asdict(Spread.of(own))}
    if "mm" in times:
        row |= {"mm_seconds": medians(times)["mm"], "x_mm": paired_ratio(own, times["mm"]).median}
    if "copy" in times:
        row["x_copy"] = paired_ratio(own, times["copy"]).median
        row["x_memory"] = row["seconds"]["median"] / (size * memory)
    if "without mean" in times:
        row["mean_seconds"] = paired_difference(own, times["without mean"])
    return row


def _thunk(call: Call) -> Callable[[], object]:
    operator, arguments = call.operator(), call.ready()
    return lambda: operator(**arguments)


def _bytes(call: Call) -> int:
    """Of what the call reads or of what it writes, whichever is more; small vectors and scales are not counted."""
    results = _thunk(call)()
    written = results[0] if isinstance(results, tuple) else results
    assert isinstance(written, Tensor)
    return max(call.arguments[0][1].made_up().nbytes, written.nbytes)


def _copy(size: int) -> Callable[[], object]:
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    return lambda: target.copy_(source)


def _mm(call: Call) -> Callable[[], object]:
    m, n, k = call["m"], call["n"], call["k"]
    a = torch.randn(m, k) if call["a_k_last"] else torch.randn(k, m).t()
    b = torch.randn(n, k).t() if call["b_k_last"] else torch.randn(k, n)
    a, b = a.bfloat16(), b.bfloat16()
    return lambda: torch.mm(a, b)


def _seconds_a_byte(size: int) -> float:
    times = kernel_times({"copy": _copy(size)}, rounds=9)
    return medians(times)["copy"] / size


if __name__ == "__main__":
    main()
