"""What option `numerics` adds to a training step: in a call that is measured, and in one that is not.

python -m benchmarks.numerics_cost [--model block] [--recipe averis] [--rounds 12] [--threads 2]
"""

import argparse
import statistics
from dataclasses import replace

import torch

from benchmarks.bench_arms import ARMS, Runner
from benchmarks.bench_models import MODELS, Sizes, workload
from benchmarks.bench_timing import in_turns, paired_difference
from spectral_compile import Numerics
from spectral_compile.lowering import cpu

_NEVER = 10**9  # steps: operators are in the graph, and no call is measured but the first, which does not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="block", choices=list(MODELS))
    parser.add_argument("--recipe", default="averis")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cpu.prepare()
    work, arm = workload(arguments.model, Sizes()), ARMS[f"spectral {arguments.recipe}"]
    settings = {"without": 0, "not measured": _NEVER, "measured": 1}
    runners = {name: Runner(replace(arm, numerics=every), work) for name, every in settings.items()}
    times = {name: [step.step for step in steps] for name, steps in in_turns(runners, arguments.rounds).items()}
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds) * 1e3:.0f} ms a step")
    idle, measured = (paired_difference(times[name], times["without"]) for name in ("not measured", "measured"))
    every = Numerics().every
    share = (idle * (every - 1) + measured) / every / statistics.median(times["without"])
    print(
        f"measuring every {every} steps adds {share:.1%}: {measured * 1e3:.0f} ms in one, {idle * 1e3:.1f} ms in others"
    )


if __name__ == "__main__":
    main()
