"""Does a checkpoint that was trained to failure recover? `python -m examples.recovery`

The model of `examples.stability` is trained at a rate that is too high until its loss is worse than guessing three
steps in a row. From the weights and the optimizer's state at the third of them, arms go on with the same batches:

- none: as before
- smooth: weights smoothed once (at most 10 % of |W|, as `WeightSmoothing()`), then as before
- skip: as before, but each step whose gradient is 2.5 times the average is left out
- lower: the normal rate
- smooth + lower, random + lower: the normal rate, after one smoothing, or a change of a random subspace of its norm
- smooth all + lower, random all + lower: the same, and what smoothing changes is not capped
- rewind + lower: the normal rate, from weights and state of 20 steps before
"""

import argparse
import copy
import itertools
import json
import math
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.corpus import Corpus, batches, load_corpus
from examples.gpt import GPT
from examples.stability import BATCH, DIVERGED, LAST, MODEL, WARMUP, Case, make_optimizer, random_change
from spectral_compile.optim import Smoothing, Trigger, TriggerState, advance, parameter_groups, smoothed

ARMS = (
    *("none", "smooth", "skip", "lower", "smooth + lower", "random + lower", "smooth all + lower"),
    *("random all + lower", "rewind + lower"),
)
IN_A_ROW, REWIND = 3, 20  # steps
LEARNED = DIVERGED - 1  # what was never below it has not diverged: it has not learned
SKIP = Trigger(warmup=1, cooldown=0)
UNCAPPED = Smoothing(cap=1e9)
HEADING = "| arm | ends below guessing | final loss of those | back at the best loss before | worst loss |"

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Failure:
    """A case that diverges, and the rate at which it would not have."""

    case: Case
    normal: float

    def __str__(self) -> str:
        return f"{self.case}; normal rate {self.normal:g}"


FAILURES = (
    Failure(Case("sgd", 1.4, False), 0.1),
    Failure(Case("sgd", 4.0, True), 0.3),
    Failure(Case("adamw", 1.0, True), 0.003),
)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run failed. step: of the last of the bad losses; best: the lowest mean of 10 losses in a row before it;
    weight: |W|_F of the hidden matrices together; state, earlier: of model and optimizer there and 20 steps before.
    """

    step: int
    loss: float
    best: float
    weight: float
    state: dict[str, Any]
    earlier: dict[str, Any]


@dataclass(frozen=True)
class Recovered:
    """Of one arm from one checkpoint. loss: mean of the last steps, infinite where it is no number; worst: of all;
    regained: after how many steps the mean of 10 losses was as low as it had been, or None.
    """

    seed: int
    loss: float
    worst: float
    regained: int | None

    def as_dict(self) -> dict[str, float | None]:
        """JSON-ready data, which knows no infinity: None."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


def fail(failure: Failure, seed: int, corpus: Corpus, most: int = 400) -> Checkpoint:
    """Train until the loss has diverged. Raises ValueError where it has not after `most` steps."""
    torch.manual_seed(seed)
    model = GPT(MODEL)
    optimizer = make_optimizer(failure.case, model)
    losses: list[float] = []
    states: deque[dict[str, Any]] = deque(maxlen=REWIND + 1)
    for step, batch in enumerate(itertools.islice(_text(corpus, seed), most)):
        states.append(copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
        loss = _backward(model, batch)
        losses.append(loss)
        bad = min(losses) < LEARNED and all(value >= DIVERGED for value in losses[-IN_A_ROW:])
        if math.isinf(loss) or bad:
            if math.isinf(loss):  # it went too fast: the last that was a number
                states.pop()
                losses.pop()
            before = losses[: -IN_A_ROW + 1 or None]
            norm = math.hypot(*(row.parameter.norm().item() for row in parameter_groups(model).matrices))
            return Checkpoint(len(losses) - 1, losses[-1], _lowest_mean(before), norm, states[-1], states[0])
        _clip(failure.case, model)
        _step(optimizer, failure.case.lr * min(1.0, (step + 1) / WARMUP))
    raise ValueError(f"{failure}: no {IN_A_ROW} losses in a row worse than guessing in {most} steps")


def go_on(failure: Failure, at: Checkpoint, arm: str, seed: int, steps: int, corpus: Corpus) -> Recovered:
    """One arm, `steps` steps from a checkpoint."""
    state = at.earlier if arm.startswith("rewind") else at.state
    model = GPT(MODEL)
    model.load_state_dict(state["model"])
    optimizer = make_optimizer(failure.case, model)
    optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    change(model, arm, seed)
    normal = arm.endswith("lower")
    losses: list[float] = []
    trigger = TriggerState.new()
    text = itertools.islice(_text(corpus, seed), at.step, at.step + steps)
    for step, batch in enumerate(text, at.step):
        losses.append(_backward(model, batch))
        if math.isinf(losses[-1]):
            break
        fires, trigger = advance(SKIP, trigger, _clip(failure.case, model))
        if not (arm == "skip" and fires):
            _step(optimizer, failure.normal if normal else failure.case.lr * min(1.0, (step + 1) / WARMUP))
        optimizer.zero_grad()
    means = [statistics.fmean(losses[end - 10 : end]) for end in range(10, len(losses) + 1)]
    regained = next((10 + after for after, mean in enumerate(means) if mean <= at.best), None)
    loss = math.inf if math.isinf(losses[-1]) else statistics.fmean(losses[-LAST:])
    return Recovered(seed, loss, max(losses), regained)


@torch.no_grad()
def change(model: GPT, arm: str, seed: int) -> None:
    """What an arm does to the weights of the checkpoint."""
    options = UNCAPPED if " all " in arm else Smoothing()
    for number, row in enumerate(parameter_groups(model).matrices):
        if arm.startswith("smooth"):
            row.parameter.copy_(smoothed(row.parameter, options).weight)
        elif arm.startswith("random"):
            row.parameter.add_(random_change(row.parameter, 1000 * seed + number, options))


def row(arm: str, outcomes: Sequence[Recovered]) -> str:
    """A line of the table."""
    kept = [outcome.loss for outcome in outcomes if outcome.loss < DIVERGED]
    spread = f"{statistics.fmean(kept):.3f} ({min(kept):.3f} to {max(kept):.3f})" if kept else "-"
    back = [outcome.regained for outcome in outcomes if outcome.regained is not None]
    when = f"{len(back)} of {len(outcomes)}{f', after {min(back)} to {max(back)} steps' if back else ''}"
    worst = max(outcome.worst for outcome in outcomes)
    return f"| {arm} | {len(kept)} of {len(outcomes)} | {spread} | {when} | {worst:.4g} |"


def _text(corpus: Corpus, seed: int) -> Iterator[Batch]:
    return batches(corpus.train, BATCH, MODEL.context, seed)


def _backward(model: GPT, batch: Batch) -> float:
    """The loss, infinite where it is no number."""
    loss: Tensor = model(*batch)
    if loss.isfinite():
        loss.backward()
        return loss.item()
    return math.inf


def _clip(case: Case, model: GPT) -> Tensor:
    """The norm before clipping."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0 if case.clip else math.inf)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def _lowest_mean(losses: Sequence[float]) -> float:
    return min(statistics.fmean(losses[first : first + 10]) for first in range(max(1, len(losses) - 9)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print a table a case; the process's exit code."""
    parser = argparse.ArgumentParser(description="What brings a run back that has diverged.")
    parser.add_argument("--steps", type=int, default=200, help="from the checkpoint on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/recovery"))
    args = parser.parse_args(arguments)
    corpus = load_corpus()
    record: dict[str, Any] = {"steps": args.steps, "corpus": corpus.digest, "checkpoints": [], "arms": []}
    for failure in FAILURES:
        found = [fail(failure, seed, corpus) for seed in range(args.seeds)]
        said = {"case": asdict(failure.case), "normal": failure.normal}
        for seed, at in enumerate(found):
            told = {"step": at.step, "loss": at.loss, "best": at.best, "weight": at.weight}
            record["checkpoints"].append({**said, "seed": seed, **told})
        places = ", ".join(f"step {at.step} (loss {at.loss:.4g}, before {at.best:.3f})" for at in found)
        print(f"\n{failure}: failed at {places}\n\n{HEADING}\n|{'---|' * 5}")
        for arm in ARMS:
            outcomes = [go_on(failure, at, arm, seed, args.steps, corpus) for seed, at in enumerate(found)]
            print(row(arm, outcomes), flush=True)
            record["arms"].append({**said, "arm": arm, "runs": [outcome.as_dict() for outcome in outcomes]})
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "result.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # what is left of a saturated softmax is slow on a CPU
    sys.exit(main())
