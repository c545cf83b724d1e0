"""Which recipe should be the default? `python -m examples.evidence`

One bf16 run makes a checkpoint. From it every arm goes on several times with the same batches and learning rates. What
differs between the branches of a four-bit arm is the seed of its stochastic rounding, nothing else. bf16 draws no
random numbers, and yet its loss depends on luck: the smallest change of the weights ends somewhere else. So each of
its branches but the first starts from matrices moved at random, by no more than one rounding to bf16 (`nudged`), and
the spread of their losses is the noise floor: a gap within it is none. All others start from the checkpoint as it is.

At the checkpoint itself the noise that each arm adds to the gradients is measured (`examples.gradient_noise`), next
to the token means that mean removal takes away (`examples.mean_share`). Every branch that ends is on disk at once.
"""

import itertools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from examples.arguments import Parser, training_config
from examples.arms import BF16, Arm, evidence_arms, parse_arms
from examples.branches import Branches, Evidence
from examples.corpus import Corpus, load_corpus
from examples.demo import INTERRUPTED, log, progress_bars
from examples.gradient_noise import draw_noise
from examples.mean_share import mean_shares
from examples.training import Trainer

NUDGE = 2.0**-9  # relative: nowhere above the half step by which rounding to bf16 may move a number
WIDTH = 200  # columns of the tables in a file or a pipe, which do not tell theirs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; the process's exit code. Ctrl-C keeps the branches that were finished."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = Console()
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        config, corpus = training_config(args), load_corpus()
        arms = parse_arms(args.arms, config.model.layers)
        if not 0 < args.checkpoint < config.steps:
            raise ValueError(f"checkpoint must be between 1 and steps - 1, not {args.checkpoint}")
        for name, least in (("rounding_seeds", 1), ("draws", 2)):
            if getattr(args, name) < least:
                raise ValueError(f"{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
        command = shlex.join(["python", "-m", "examples.evidence", *arguments])
        evidence = Evidence(command, config, corpus, args.checkpoint, args.draws)
        branching = Branching(evidence, corpus, args.rounding_seeds, args.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    with progress_bars(console) as progress:
        try:
            branching.run(arms, progress)
            evidence.finished = True
        except KeyboardInterrupt:
            log(progress, "interrupted: what was finished is kept")
    evidence.write(args.out)
    if not console.is_terminal:
        console.width = WIDTH
    tables = (evidence.noise_table(), evidence.loss_table(), evidence.difference_table())
    console.print(*(table for table in tables if table.row_count and len(table.columns) > 1))
    console.print(f"Written: {args.out / 'result.json'}")
    return 0 if evidence.finished else INTERRUPTED


def nudged(state: dict[str, Any], seed: int) -> dict[str, Any]:
    """A copy of `Trainer.state()` with each element of each matrix times 1 + NUDGE u, u uniform in -1 .. 1."""
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: weight * (1 + NUDGE * (2 * torch.rand(weight.shape, generator=generator) - 1))
        for name, weight in state["model"].items()
        if weight.dim() == 2
    }
    return state | {"model": state["model"] | moved}


class Branching:
    """The work: train to the checkpoint, then every arm from there, one compilation each."""

    def __init__(self, evidence: Evidence, corpus: Corpus, seeds: int, out: Path) -> None:
        self.evidence, self.config, self.seeds, self.out = evidence, evidence.config, seeds, out
        self.training = list(itertools.islice(self.config.training_batches(corpus), self.config.steps))
        self.held_out = self.config.held_out_batches(corpus)

    def run(self, arms: Sequence[Arm], progress: Progress) -> None:
        """Fill `evidence` and write it as results come; Ctrl-C passes through."""
        arms = sorted(arms, key=lambda arm: arm != BF16)  # bf16 first: its model is compiled already
        start, end = self.evidence.checkpoint, self.config.steps
        first = progress.add_task("checkpoint", total=start, start=False, note="waiting")
        total = self.seeds * (end - start)
        bars = [progress.add_task(arm.name, total=total, start=False, note="waiting") for arm in arms]

        trainer = Trainer(self.config, BF16)
        self._train(trainer, "bf16", range(start), progress, first)
        progress.stop_task(first)
        state, batch = trainer.state(), self.training[start]
        self.evidence.layers = mean_shares(self.config.model, state["model"], self.held_out[:4])
        reference = trainer.gradients(batch)
        for arm, bar in zip(arms, bars, strict=True):
            branches = Branches(arm.name)
            self.evidence.arms.append(branches)
            if arm != BF16:
                trainer = Trainer(self.config, arm)
                progress.update(bar, note="compiling, gradients")
                trainer.restore(state)
                branches.noise = draw_noise(trainer, arm, batch, reference, self.evidence.draws)
                log(progress, f"{arm.name}: {self.evidence.draws} roundings of one batch's gradients")
                self.evidence.write(self.out)
            for index in range(self.seeds):
                seed = self.config.seed + index
                trainer.restore(nudged(state, seed) if arm == BF16 and index else state)
                arm.seed_rounding(seed)
                label = f"branch {index + 1} of {self.seeds}"
                branches.losses[seed] = self._train(trainer, label, range(start, end), progress, bar)
                self.evidence.write(self.out)  # after each: whatever ends the process, no finished branch is lost
            progress.stop_task(bar)

    def _train(self, trainer: Trainer, label: str, steps: range, progress: Progress, bar: TaskID) -> float:
        """Train these steps and move the progress bar with them; the validation loss afterwards."""
        progress.start_task(bar)
        for step in steps:
            loss = trainer.step(self.training[step], self.config.learning_rate(step))
            progress.update(bar, advance=1, note=f"{label}: loss {loss:.3f}")
        validation = trainer.validate(self.held_out)
        progress.update(bar, note=f"{label}: validation loss {validation:.4f}")
        log(
            progress, f"{progress.tasks[bar].description}, {label}, step {steps.stop}: validation loss {validation:.4f}"
        )
        return validation


def _parser() -> Parser:
    parser = Parser("Branch every arm from one bf16 checkpoint and compare losses and gradients.", out="runs/evidence")
    parser.add_argument("--checkpoint", type=int, default=200, help="bf16 steps before the arms part")
    parser.add_argument("--rounding-seeds", type=int, default=5, help="branches of each arm")
    parser.add_argument("--draws", type=int, default=16, help="roundings of one batch's gradients, of each arm")
    parser.set_defaults(steps=300, arms=evidence_arms())
    return parser


if __name__ == "__main__":
    sys.exit(main())
