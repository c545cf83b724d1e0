"""Spectra against AdamW and Muon: loss at equal steps, time of an optimizer's step, bytes of its state.

    python -m benchmarks.optimizers [--rates 0.001,...,0.032] [--steps 300] [--seeds 3] [--step-only]

The demo's GPT, smaller: three optimizers on 2 cores take a while. Each is given every learning rate of one grid on one
seed; its best is then run again on fresh seeds, which chose nothing. Weights, batches and schedule of a seed are the
same for all. fp32, eager, gradients clipped to norm 1, which neither Spectra's nor Muon's steps feel.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.optimizer_steps import NAMES, Cost, Matrices, costs, made
from examples.corpus import Corpus, load_corpus
from examples.gpt import GPT, GPTConfig
from examples.training import TrainingConfig

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
MODEL = GPTConfig(dim=128, layers=4, heads=4, context=128)
BATCH = 4
TUNING_SEED = 0
LARGE = (1024, 2816)  # a feed-forward matrix of a model of .4 B parameters
HEADING = "| optimizer | best rate | after half the steps | validation loss |"
COSTS = "| optimizer | step of | ms, median | quartiles | faster than Muon | state, MiB | of AdamW's |"


@dataclass(frozen=True)
class Run:
    """half, end: validation loss after half the steps and after all, nats a byte, infinite where it is no number."""

    optimizer: str
    rate: float
    seed: int
    half: float
    end: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data, which knows no infinity: None."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


def train(name: str, rate: float, seed: int, steps: int, corpus: Corpus) -> Run:
    """One run of one optimizer, of the peak learning rate `rate`."""
    config = TrainingConfig(MODEL, steps=steps, batch=BATCH, lr=rate, seed=seed)
    torch.manual_seed(seed)
    model = GPT(MODEL)
    optimizer = made(name, model)
    losses = {}
    for step, batch in enumerate(itertools.islice(config.training_batches(corpus), steps)):
        loss = model(*batch)
        if not loss.isfinite():
            break
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(step)
        optimizer.step()
        model.zero_grad()
        if step + 1 in (steps // 2, steps):
            losses[step + 1] = validated(model, config, corpus)
    half, end = losses.get(steps // 2, math.inf), losses.get(steps, math.inf)
    return Run(name, rate, seed, half, end)


@torch.no_grad()
def validated(model: GPT, config: TrainingConfig, corpus: Corpus) -> float:
    """Mean loss over the held-out batches, which are the same for every run; infinite where it is no number."""
    loss = statistics.fmean(model(*batch).item() for batch in config.held_out_batches(corpus))
    return loss if math.isfinite(loss) else math.inf


def best(runs: Sequence[Run], rates: Sequence[float]) -> tuple[float, bool]:
    """The rate of the lowest loss, and whether the grid goes on at both sides of it."""
    rate = min(runs, key=lambda run: run.end).rate
    return rate, min(rates) < rate < max(rates)


def loss_row(name: str, rate: float, inside: bool, runs: Sequence[Run]) -> str:
    """A line of the table of losses, over fresh seeds."""
    half, end = [run.half for run in runs], [run.end for run in runs]
    edge = "" if inside else ", the edge of the grid"
    spread = f"{statistics.fmean(end):.4f} ({min(end):.4f} to {max(end):.4f})"
    return f"| {name} | {rate:g}{edge} | {statistics.fmean(half):.4f} | {spread} |"


def cost_row(name: str, what: str, cost: Cost) -> str:
    """A line of the table of steps."""
    ms, faster = cost.milliseconds, cost.times_faster
    times = "" if name == "muon" else f"{faster.median:.1f} times"
    return (
        f"| {name} | {what} | {ms.median:.2f} | {ms.low:.2f} to {ms.high:.2f} | {times} |"
        f" {cost.state / 2**20:.2f} | {cost.share:.4f} |"
    )


def step_costs(rounds: int) -> dict[str, dict[str, Cost]]:
    """Of the demo's model, of its hidden matrices alone, and of one large matrix."""
    demo = [tuple(p.shape) for name, p in GPT(GPTConfig()).layers.named_parameters() if p.dim() == 2]
    return {
        "the demo's model, 3.3M": costs(lambda: GPT(GPTConfig()), rounds),
        "its hidden matrices": costs(lambda: Matrices(demo), rounds),  # type: ignore[arg-type]
        " x ".join(map(str, LARGE)): costs(lambda: Matrices([LARGE]), rounds),
    }


def compare(
    names: Sequence[str], rates: Sequence[float], seeds: int, steps: int, record: dict[str, Any], out: Path
) -> None:
    """Tune, run again on fresh seeds, print; `record` is written after every run."""
    corpus = load_corpus()
    record.update(corpus=corpus.digest, model=asdict(MODEL), batch=BATCH, steps=steps, tuning=[], runs=[])

    def run(name: str, rate: float, seed: int, into: str) -> Run:
        done = train(name, rate, seed, steps, corpus)
        record[into].append(done.as_dict())
        write(record, out)
        return done

    print(f"\n| optimizer | {' | '.join(f'{rate:g}' for rate in rates)} |\n|{'---|' * (len(rates) + 1)}")
    rows = []
    for name in names:
        tried = [run(name, rate, TUNING_SEED, "tuning") for rate in rates]
        print(f"| {name} | {' | '.join(f'{done.end:.4f}' for done in tried)} |", flush=True)
        rate, inside = best(tried, rates)
        fresh = range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds)
        rows.append(loss_row(name, rate, inside, [run(name, rate, seed, "runs") for seed in fresh]))
    print(f"\n{HEADING}\n|{'---|' * 4}", *rows, sep="\n", flush=True)


def write(record: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print its tables; the process's exit code."""
    parser = argparse.ArgumentParser(description="Spectra against AdamW and Muon.")
    parser.add_argument("--optimizers", default=",".join(NAMES), help="that train; also spectra-rank-0.1, and so on")
    parser.add_argument("--rates", default=",".join(f"{rate:g}" for rate in RATES), help="peak learning rates to try")
    parser.add_argument("--seeds", type=int, default=3, help="fresh ones, of the best rate")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=20, help="of the steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step-only", action="store_true", help="time and state of steps, and no training")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"), help="folder for result.json")
    args = parser.parse_args(arguments)
    try:
        rates = sorted({float(rate) for rate in args.rates.split(",")})
    except ValueError:
        parser.error(f"--rates takes numbers, as in 0.001,0.002, not {args.rates!r}")
    if rates[0] <= 0 or min(args.seeds, args.rounds) < 1 or args.steps < 2:
        parser.error("rates are above 0, seeds and rounds 1 or more, steps 2 or more")
    names = args.optimizers.split(",")
    try:
        for name in names:
            made(name, Matrices([(4, 4)]))
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads}
    if not args.step_only:
        compare(names, rates, args.seeds, args.steps, record, args.out)
    found = step_costs(args.rounds)
    print(f"\n{COSTS}\n|{'---|' * 7}")
    for what, of_optimizers in found.items():
        for name, cost in of_optimizers.items():
            print(cost_row(name, what, cost))
    record["costs"] = {what: {name: cost.as_dict() for name, cost in of.items()} for what, of in found.items()}
    write(record, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
