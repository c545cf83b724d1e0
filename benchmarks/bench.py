"""Four-bit training steps against bf16 and against other quantisers, side by side in one run.

    python -m benchmarks.bench [--models block,gpt] [--arms default] [--rounds 20] [--threads 2]     # or: make bench

Tables on the terminal, and everything in runs/bench/result.json. `--parts` picks from: timing, memory and compile time
(each arm in a process of its own), stages (of the first model, kernel by kernel). What an arm cannot do is a row that
says why.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from typing import Any

import torch
from rich.console import Console

from benchmarks import bench_arms
from benchmarks.bench_arguments import PARTS, Parser, some
from benchmarks.bench_arms import ARMS, Runner
from benchmarks.bench_capture import plan_of
from benchmarks.bench_errors import reason
from benchmarks.bench_models import MODELS, BlockSizes, GPTSizes, Sizes, Workload, changed, workload
from benchmarks.bench_processes import Setting, compile_times, memory
from benchmarks.bench_profile import profiled
from benchmarks.bench_tables import tables
from benchmarks.bench_timing import in_turns, kernel_times, medians, summary
from benchmarks.stages import stages
from examples.results import cpu_name, write_json
from spectral_compile.lowering import cpu

WIDTH = 170  # of the tables, wherever they are printed: wrapped they cannot be read


class Bench:
    """One run: measures part by part, and writes its record after each."""

    def __init__(self, arguments: argparse.Namespace, command: list[str]) -> None:
        sizes = Sizes(changed(BlockSizes(), arguments.block), changed(GPTSizes(), arguments.gpt))
        self.arguments = arguments
        self.setting = Setting(sizes, arguments.threads, arguments.codegen)
        self.models = some(arguments.models, tuple(MODELS), "model")
        self.parts = some(arguments.parts, PARTS, "part")
        self.arms = bench_arms.chosen(arguments.arms)
        self.compile_arms = bench_arms.chosen(arguments.compile_arms)
        bench_arms.chosen(f"{arguments.baseline},spectral {arguments.stage_recipe}")  # there are such
        if arguments.rounds < 1 or arguments.threads < 1:
            raise ValueError("rounds and threads are at least 1")
        self.model: dict[str, Any] = {}  # the part of the record that is being filled
        self.runners: dict[str, Runner] = {}
        self.record: dict[str, Any] = {
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": shlex.join(["python", "-m", "benchmarks.bench", *command]),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchao": _torchao()},
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": os.getloadavg()},
            "settings": {
                "rounds": arguments.rounds,
                "threads": arguments.threads,
                "baseline": arguments.baseline,
                "codegen": arguments.codegen,
                "sizes": dataclasses.asdict(sizes),
            },
            "models": {},
        }

    def run(self) -> None:
        torch.set_num_threads(self.setting.threads)
        if self.setting.codegen == "inductor":
            cpu.prepare()
        for number, name in enumerate(self.models):
            self.runners = {}  # of the model before, with its memory
            work = workload(name, self.setting.sizes)
            self.model = {"tokens": work.tokens(), "arms": {arm: {} for arm in self.arms}}
            self.record["models"][name] = self.model
            if "timing" in self.parts:
                self._time(work)
                self._write()
            if "memory" in self.parts:
                self._memory(name)
                self._write()
            if "compile" in self.parts:
                _say(f"{name}: compile time of {', '.join(self.compile_arms)}")
                self.model["compile"] = compile_times(self.setting, name, self.compile_arms)
                self._write()
            if "stages" in self.parts and number == 0:
                self._stages(work)
                self._write()

    def _time(self, work: Workload) -> None:
        self.runners = {name: runner for name in self.arms if (runner := self._ready(name, work)) is not None}
        _say(f"{work.name}: {self.arguments.rounds} rounds")
        taken = summary(in_turns(self.runners, self.arguments.rounds), self.arguments.baseline)
        for name, row in taken.items():
            self.model["arms"][name] |= row
        self.model["optimizer_seconds"] = _optimizer_seconds(work)

    def _ready(self, name: str, work: Workload) -> Runner | None:
        """The runner of an arm, compiled; None, and the reason in the record, where it does not run."""
        start, row = time.perf_counter(), self.model["arms"][name]
        try:
            if ARMS[name].recipe:
                plan = plan_of(work, ARMS[name].recipe)
                kept = sorted({product.layer for product in plan.rows if not product.quantized})
                row["products"] = {"quantized": len(plan.quantized), "kept_in": kept}
            runner = Runner(ARMS[name], work, self.setting.codegen)
            runner.step()
        except Exception as error:
            row["failed"] = reason(error)
            _say(f"{work.name}: {name} failed: {row['failed']}")
            return None
        _say(f"{work.name}: {name} is ready, after {time.perf_counter() - start:.0f} s")
        return runner

    def _memory(self, model: str) -> None:
        for name, row in self.model["arms"].items():
            if "failed" in row:
                continue
            _say(f"{model}: memory of {name}")
            row["memory"] = found = memory(self.setting, model, name)
            if "failed" in found and "step" not in row:
                row["failed"] = found["failed"]

    def _stages(self, work: Workload) -> None:
        _say(f"{work.name}: kernels")
        recipe = self.arguments.stage_recipe
        try:
            names = (self.arguments.baseline, f"spectral {recipe}")
            known = {name: self.runners.get(name) or Runner(ARMS[name], work, self.setting.codegen) for name in names}
            record = stages(known[names[1]], self.arguments.rounds, self.arguments.copy_mib)
            steps = min(3, self.arguments.rounds)
            record["profile"] = {name: profiled(runner, steps) for name, runner in known.items()}
        except Exception as error:
            record = {"failed": reason(error)}
            _say(f"{work.name}: kernels failed: {record['failed']}")
        self.model["stages"] = record

    def _write(self) -> None:
        self.record["machine"]["load_after"] = os.getloadavg()
        write_json(self.arguments.out / "result.json", self.record)


def main(argv: list[str] | None = None) -> int:
    command = sys.argv[1:] if argv is None else argv
    parser = Parser(__doc__)
    try:
        bench = Bench(parser.parse_args(command), command)
    except ValueError as error:
        parser.error(str(error))
    bench.run()
    console = Console(width=WIDTH)
    for table in tables(bench.record):
        console.print(table)
    console.print(f"{bench.record['machine']}\n{bench.arguments.out / 'result.json'}", highlight=False, markup=False)
    return 0


def _optimizer_seconds(work: Workload) -> float:
    """Of a fused AdamW step on the workload's parameters, with gradients of zero; the parameters stay what they are."""
    parameters = list(work.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
    times = kernel_times({"adamw": optimizer.step}, rounds=5)
    for parameter in parameters:
        parameter.grad = None
    return medians(times)["adamw"]


def _torchao() -> str | None:
    try:
        return importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        return None


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
