"""Is the difference between two arms more than luck? `python -m examples.spread`

One bf16 run makes a checkpoint. From it every arm goes on with the same batches and learning rates, those in
four bits once for each rounding seed: what differs within an arm is stochastic rounding, nothing else. Also
printed: how much of each linear layer's input is its token mean, which is what mean removal takes away.
"""

import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.arguments import Parser, training_config
from examples.corpus import Corpus, load_corpus
from examples.demo import INTERRUPTED, log, progress_bars
from examples.mean_share import MeanShare, mean_shares
from examples.results import BASELINE, cpu_name, provenance, write_json
from examples.training import BF16, Arm, Trainer, TrainingConfig, parse_arms


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; the process's exit code. Ctrl-C keeps the branches that were finished."""
    console = Console()
    parser = Parser("Branch every arm from one bf16 checkpoint and compare the losses.", out="runs/spread")
    parser.add_argument("--checkpoint", type=int, default=200, help="bf16 steps before the arms part")
    parser.add_argument("--rounding-seeds", type=int, default=3, help="branches of each four-bit arm")
    args = parser.parse_args(arguments)
    try:
        config, arms, corpus = training_config(args), parse_arms(args.arms), load_corpus()
        if not 0 < args.checkpoint < config.steps:
            raise ValueError(f"checkpoint must be between 1 and steps - 1, not {args.checkpoint}")
        if args.rounding_seeds < 1:
            raise ValueError(f"rounding-seeds must be at least 1, not {args.rounding_seeds}")
        spread = Spread(config, corpus, args.checkpoint)
        branching = Branching(spread, corpus)
    except (ValueError, OSError) as error:
        parser.error(str(error))

    with progress_bars(console) as progress:
        try:
            branching.run(arms, args.rounding_seeds, progress)
        except KeyboardInterrupt:
            spread.interrupted = True
    console.print(spread.layer_table(), spread.arm_table())
    spread.write(args.out)
    console.print(f"Written: {args.out / 'result.json'}")
    return INTERRUPTED if spread.interrupted else 0


@dataclass
class Branches:
    """The final validation losses of one arm, by rounding seed."""

    name: str
    losses: dict[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None with a single one."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 else None


@dataclass
class Spread:
    """What was measured: the layers at the checkpoint, and the arms' losses at the end."""

    config: TrainingConfig
    corpus: Corpus
    checkpoint: int
    layers: list[MeanShare] = field(default_factory=list)
    arms: list[Branches] = field(default_factory=list)
    interrupted: bool = False

    def percent(self, loss: float) -> float | None:
        """A loss, or a deviation of losses, in percent of the baseline's loss, where there is one."""
        baseline = next((arm.mean for arm in self.arms if arm.name == BASELINE), None)
        return None if baseline is None else 100 * loss / baseline

    def gap(self, arm: Branches) -> float | None:
        """The arm's mean loss above the baseline's, in percent."""
        ratio = self.percent(arm.mean)
        return None if ratio is None or arm.name == BASELINE else ratio - 100

    def arm_table(self) -> Table:
        """One row an arm: mean and standard deviation over the rounding seeds."""
        title = f"Steps {self.checkpoint} to {self.config.steps} from one bf16 checkpoint"
        table = Table("arm", title=title, caption=cpu_name())
        for column in ("seeds", "validation loss", f"gap to {BASELINE}"):
            table.add_column(column, justify="right")
        for arm in self.arms:
            gap, spread = self.gap(arm), self.percent(arm.deviation or 0.0)
            table.add_row(
                arm.name,
                str(len(arm.losses)),
                f"{arm.mean:.4f}" + ("" if arm.deviation is None else f" ± {arm.deviation:.4f}"),
                "-" if gap is None else f"{gap:+.2f}" + (f" ± {spread:.2f} %" if arm.deviation else " %"),
            )
        return table

    def layer_table(self) -> Table:
        """One row a linear layer: the share of the token mean in its input."""
        table = Table("layer", title=f"Token mean of the layers' inputs after {self.checkpoint} steps")
        for column in ("R = |mean| / RMS", "mean / deviation"):
            table.add_column(column, justify="right")
        for layer in self.layers:
            table.add_row(layer.name, f"{layer.share:.3f}", f"{layer.to_deviation:.2f}")
        return table

    def write(self, folder: Path) -> None:
        """Write `result.json` to the folder, which is made where needed."""
        summaries = [{"mean": arm.mean, "deviation": arm.deviation, "gap_percent": self.gap(arm)} for arm in self.arms]
        arms = [asdict(arm) | summary for arm, summary in zip(self.arms, summaries, strict=True)]
        layers = [asdict(layer) | {"to_deviation": layer.to_deviation} for layer in self.layers]
        record = provenance(self.config, self.corpus) | {"checkpoint": self.checkpoint}
        record |= {"interrupted": self.interrupted, "arms": arms, "layers": layers}
        write_json(folder / "result.json", record)


class Branching:
    """The work: train to the checkpoint, then every branch from there, one compilation an arm."""

    def __init__(self, spread: Spread, corpus: Corpus) -> None:
        self.spread, self.config = spread, spread.config
        self.training = list(itertools.islice(self.config.training_batches(corpus), self.config.steps))
        self.held_out = self.config.held_out_batches(corpus)

    def run(self, arms: Sequence[Arm], rounding_seeds: int, progress: Progress) -> None:
        """Fill `spread` as results come; Ctrl-C passes through."""
        trainer = Trainer(self.config, BF16)
        self._train(trainer, "checkpoint", range(self.spread.checkpoint), progress)
        state = trainer.state()
        self.spread.layers = mean_shares(self.config.model, state["model"], self.held_out[:4])
        rest = range(self.spread.checkpoint, self.config.steps)
        for arm in sorted(arms, key=lambda arm: arm != BF16):  # bf16 first: its model is compiled already
            trainer = trainer if arm == BF16 else Trainer(self.config, arm)
            branches = Branches(arm.name)
            for index in range(1 if arm == BF16 else rounding_seeds):
                seed = self.config.seed + index
                trainer.restore(state)
                arm.seed_rounding(seed)
                branches.losses[seed] = self._train(trainer, f"{arm.name} {index}", rest, progress)
                if index == 0:
                    self.spread.arms.append(branches)

    def _train(self, trainer: Trainer, name: str, steps: range, progress: Progress) -> float:
        """Train these steps behind a progress bar; the validation loss afterwards."""
        bar = progress.add_task(name, total=len(steps), note="compiling where needed")
        for step in steps:
            loss = trainer.step(self.training[step], self.config.learning_rate(step))
            progress.update(bar, advance=1, note=f"loss {loss:.3f}")
        validation = trainer.validate(self.held_out)
        progress.update(bar, note=f"validation loss {validation:.4f}")
        log(progress, f"{name} step {steps.stop}: validation loss {validation:.4f}")
        return validation


if __name__ == "__main__":
    sys.exit(main())
