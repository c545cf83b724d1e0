"""Does smoothing save a run that diverges? `python -m examples.stability`

A small byte-level GPT at learning rates that are too high, and at a normal one: without anything, with smoothing, and
with what smoothing might owe its effect to. All see the same trigger, the norm before clipping against its average:

- smooth: `optim.Smoother`, which acts after the step that follows the trigger, as `WeightSmoothing` does
- every 10: as smooth, at every tenth step whatever the gradient does
- smooth + skip: the step that triggers is left out, and weights are smoothed in its place, as published
- skip: the step that triggers is left out, and that is all
- lower: the learning rate is halved at each trigger, for good
- random: as smooth, with a random subspace of as many directions in place of the top one, and a change of equal norm
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

import torch
from torch import Tensor

from examples.corpus import Corpus, batches, load_corpus
from examples.gpt import GPT, VOCABULARY, GPTConfig
from spectral_compile.optim import Smoother, Smoothing, Trigger, TriggerState, advance, parameter_groups, smoothed

ARMS = ("none", "smooth", "every 10", "smooth + skip", "skip", "lower", "random")
MODEL = GPTConfig(dim=64, layers=2, heads=4, context=64)
BATCH, WARMUP = 4, 60  # sequences a step; steps in which the learning rate grows to its peak
DEFAULT = Smoothing()
TRIGGER = Trigger(warmup=20, cooldown=10)  # shorter than the defaults, as runs are
LAST = 20  # steps whose mean loss counts
HEADING = "| arm | diverged | final loss of the others | worst loss | times acted, a run |"
DIVERGED = math.log(VOCABULARY)  # no better than guessing


@dataclass(frozen=True)
class Case:
    """An optimizer, its peak learning rate, and whether gradients are clipped to norm 1."""

    optimizer: str
    lr: float
    clip: bool

    def __str__(self) -> str:
        return f"{self.optimizer}, rate {self.lr:g}, {'clipped' if self.clip else 'not clipped'}"


CASES = (
    Case("sgd", 1.4, False),
    Case("sgd", 4.0, True),
    Case("adamw", 0.3, False),
    Case("adamw", 0.3, True),
    Case("adamw", 0.003, True),
)


@dataclass(frozen=True)
class Outcome:
    """Of one run. loss: mean of the last steps, nats a byte, infinite where it is no number. worst: after the first 50
    steps. triggers: how often an arm acted. diverged_at: the first step from which on no loss was better than guessing.
    """

    seed: int
    loss: float
    worst: float
    triggers: int
    diverged_at: int | None

    def as_dict(self) -> dict[str, float | None]:
        """JSON-ready data, which knows no infinity: None."""
        return {name: None if value == math.inf else value for name, value in asdict(self).items()}


class Intervention:
    """What an arm does on a trigger; `smooth` does it by itself."""

    def __init__(self, arm: str, model: GPT, seed: int) -> None:
        self.arm, self.seed = arm, seed
        self.matrices = [row.parameter for row in parameter_groups(model).matrices]
        every = 10 if arm == "every 10" else None
        smooths = arm in ("smooth", "every 10")
        self.smoother = Smoother(parameter_groups(model), trigger=TRIGGER, every=every) if smooths else None
        self.state, self.fires, self.pending, self.rate = TriggerState.new(), False, False, 1.0

    @property
    def triggers(self) -> int:
        return len(self.smoother.log) if self.smoother else int(self.state.fired) if self.arm != "none" else 0

    def takes_step(self, norm: Tensor) -> bool:
        """Before the optimizer's step, given the norm of the unclipped gradient."""
        self.pending = self.fires
        fires, self.state = advance(TRIGGER, self.state, norm)
        self.fires = bool(fires)
        if self.fires and self.arm == "lower":
            self.rate /= 2
        return not (self.fires and self.arm in ("skip", "smooth + skip"))

    @torch.no_grad()
    def after_step(self) -> None:
        if self.fires and self.arm == "smooth + skip":
            for weight in self.matrices:
                weight.copy_(smoothed(weight, Smoothing()).weight)
        if self.pending and self.arm == "random":
            for number, weight in enumerate(self.matrices):
                weight.add_(random_change(weight, self.seed + 1000 * int(self.state.steps) + number))


def make_optimizer(case: Case, model: GPT) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; no weight decay."""
    if case.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=case.lr, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=case.lr, betas=(0.9, 0.95), weight_decay=0.0)


def random_change(weight: Tensor, seed: int, options: Smoothing = DEFAULT) -> Tensor:
    """A change [m, n] of the norm that smoothing's has, which scales W along random directions, as many, instead."""
    found = smoothed(weight, options)
    norm = (found.weight - weight).norm()
    chance = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(weight.shape[0], int(found.rank), generator=chance)).Q
    part = U @ (U.mT @ weight)
    return -part * (norm / part.norm())


def train(case: Case, arm: str, seed: int, steps: int, corpus: Corpus) -> Outcome:
    """One run, from the same weights and with the same batches for each arm."""
    torch.manual_seed(seed)
    model = GPT(MODEL)
    optimizer = make_optimizer(case, model)
    acts = Intervention(arm, model, seed)
    losses: list[float] = []
    text = batches(corpus.train, BATCH, MODEL.context, seed)
    for step, (tokens, targets) in enumerate(itertools.islice(text, steps)):
        loss = model(tokens, targets)
        losses.append(loss.item() if loss.isfinite() else math.inf)
        if math.isinf(losses[-1]):
            break  # nothing comes back from a weight that is no number
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0 if case.clip else math.inf)
        takes = acts.takes_step(norm)
        for group in optimizer.param_groups:
            group["lr"] = case.lr * acts.rate * min(1.0, (step + 1) / WARMUP)
        if takes:
            optimizer.step()
        acts.after_step()
        optimizer.zero_grad()
    if acts.smoother:
        acts.smoother.remove()
    good = [step for step, value in enumerate(losses) if value < DIVERGED]
    ends_badly = not good or good[-1] + 1 + LAST // 2 <= len(losses) or math.isinf(losses[-1])
    return Outcome(
        seed,
        math.inf if math.isinf(losses[-1]) else statistics.fmean(losses[-LAST:]),
        max(losses[50:], default=math.inf),
        acts.triggers,
        (good[-1] + 1 if good else 0) if ends_badly else None,
    )


def row(arm: str, outcomes: Sequence[Outcome]) -> str:
    """A line of the table."""
    losses = [o.loss for o in outcomes if o.diverged_at is None]
    spread = f"{statistics.fmean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})" if losses else "-"
    lost = [o.diverged_at for o in outcomes if o.diverged_at is not None]
    when = f", at step {min(lost)} to {max(lost)}" if lost else ""
    worst = max(o.worst for o in outcomes)
    triggers = statistics.fmean(o.triggers for o in outcomes)
    return f"| {arm} | {len(lost)} of {len(outcomes)}{when} | {spread} | {worst:.2f} | {triggers:.1f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print a table a case; the process's exit code."""
    parser = argparse.ArgumentParser(description="What smoothing does to runs that diverge, against controls.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/stability"))
    args = parser.parse_args(arguments)
    corpus = load_corpus()
    record = []
    for case in CASES:
        print(f"\n{case}\n\n{HEADING}\n|{'---|' * 5}")
        for arm in ARMS:
            outcomes = [train(case, arm, seed, args.steps, corpus) for seed in range(args.seeds)]
            print(row(arm, outcomes), flush=True)
            record.append({"case": asdict(case), "arm": arm, "runs": [o.as_dict() for o in outcomes]})
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / "result.json").write_text(
                json.dumps({"steps": args.steps, "corpus": corpus.digest, "arms": record}, indent=2) + "\n"
            )
    return 0


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # what is left of a saturated softmax is slow on a CPU
    sys.exit(main())
