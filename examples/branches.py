"""What `examples.evidence` measures, as tables and JSON: losses of branches from one checkpoint, noise of gradients."""

import functools
import operator
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from examples import gradient_noise, mean_share
from examples.arms import PLAIN
from examples.corpus import Corpus
from examples.gradient_noise import Noise
from examples.mean_share import MeanShare, to_deviation
from examples.results import BASELINE, cpu_name, provenance, write_json
from examples.training import TrainingConfig
from examples.welch import Difference, compare

REFERENCES = (BASELINE, PLAIN)  # the arms that every other one is compared with, where they ran


@dataclass
class Branches:
    """One arm: validation losses at the end in nats a byte, by seed, and the noise of its gradients, by layer path."""

    name: str
    losses: dict[int, float] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.losses.values()) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None with fewer than two."""
        return statistics.stdev(self.losses.values()) if len(self.losses) > 1 else None


@dataclass
class Evidence:
    """All that was measured, growing as branches end. command: what repeats it. draws: of each arm's rounding."""

    command: str
    config: TrainingConfig
    corpus: Corpus
    checkpoint: int
    draws: int
    layers: list[MeanShare] = field(default_factory=list)
    arms: list[Branches] = field(default_factory=list)
    finished: bool = False
    started: float = field(default_factory=time.perf_counter)

    def percent(self, loss: float | None) -> float | None:
        """A loss, or a deviation of losses, in percent of the baseline's mean loss, where there are both."""
        baseline = next((arm.mean for arm in self.arms if arm.name == BASELINE), None)
        return None if loss is None or baseline is None else 100 * loss / baseline

    def gap(self, arm: Branches) -> float | None:
        """The arm's mean loss above the baseline's, in percent."""
        ratio = self.percent(arm.mean)
        return None if ratio is None or arm.name == BASELINE else ratio - 100

    def against(self, arm: Branches) -> dict[str, Difference | None]:
        """The arm's mean loss minus that of each reference, as Welch's test sees it.

        Unpaired: equal seeds in two arms have no rounding in common. Batches are the same in all of them, so their
        luck is in neither the difference nor its error.
        """
        others = {other.name: other for other in self.arms if other.name != arm.name}
        return {
            name: compare(list(arm.losses.values()), list(others[name].losses.values()))
            for name in REFERENCES
            if name in others
        }

    def ranked(self) -> list[Branches]:
        """The arms with a finished branch, lowest mean loss first."""
        losses = {arm.name: arm.mean for arm in self.arms}
        finished = [arm for arm in self.arms if losses[arm.name] is not None]
        return sorted(finished, key=lambda arm: losses[arm.name] or 0.0)

    def loss_table(self) -> Table:
        """One row an arm, the best first: mean and standard deviation over the seeds."""
        title = f"Steps {self.checkpoint} to {self.config.steps} from one bf16 checkpoint: mean ± standard deviation"
        table = Table("arm", title=title, caption=cpu_name())
        for column in ("seeds", "validation loss", f"gap to {BASELINE}"):
            table.add_column(column, justify="right")
        for arm in self.ranked():
            loss = _with_spread(f"{arm.mean:.4f}", arm.deviation, "{:.4f}")
            gap = self.gap(arm)
            share = _with_spread("" if gap is None else f"{gap:+.2f}", self.percent(arm.deviation), "{:.2f}")
            table.add_row(arm.name, str(len(arm.losses)), loss, f"{share} %" if share else "-")
        return table

    def difference_table(self) -> Table:
        """One row an arm, the best first: how many standard errors it is off each reference, and how often luck is."""
        title = "Difference of mean losses ± its standard error; over that error (Welch's t); two-sided p"
        table = Table(Column("arm", overflow="fold"), title=title)
        references = [name for name in REFERENCES if any(arm.name == name for arm in self.arms)]
        for name in references:
            for column in (f"minus {name}", "t", "p"):
                table.add_column(column, justify="right")
        for arm in self.ranked():
            found = self.against(arm)
            table.add_row(arm.name, *(cell for name in references for cell in _cells(found.get(name))))
        return table

    def noise_table(self) -> Table:
        """One row a kind of layer: its means, and for each arm the relative bias and deviation of its gradients."""
        title = (
            f"Weight gradients at step {self.checkpoint}, {self.draws} roundings of a batch: bias | deviation over |g|"
        )
        caption = "input, gradient: mean / deviation over tokens, of a layer's input and of its output's gradient"
        table = Table(Column("kind", no_wrap=True), title=title, caption=caption)
        arms = {arm.name: _pool(arm.noise) for arm in self.arms if arm.noise}
        for column in ("input", "gradient", *arms):
            table.add_column(column, justify="right", overflow="fold")
        shares = mean_share.pool(self.layers)
        for kind in dict.fromkeys(kind for noise in arms.values() for kind in noise):
            share = shares.get(kind)
            means = ["", ""] if share is None else [f"{to_deviation(r):.2f}" for r in (share.input, share.gradient)]
            cells = (f"{n[kind].relative_bias:.3f} | {n[kind].relative_deviation:.3f}" for n in arms.values())
            table.add_row(kind, *means, *cells)
        return table

    def write(self, folder: Path) -> None:
        """Write `result.json` to the folder, which is made where needed."""
        record: dict[str, Any] = {"command": self.command, "finished": self.finished}
        record |= provenance(self.config, self.corpus)
        record |= {"checkpoint": self.checkpoint, "draws": self.draws, "seconds": time.perf_counter() - self.started}
        record |= {"arms": [self._arm_record(arm) for arm in self.arms]}
        shares = {"layers": self.layers, "kinds": mean_share.pool(self.layers).values()}
        record |= {"means": {key: [_share_record(share) for share in found] for key, found in shares.items()}}
        write_json(folder / "result.json", record)

    def _arm_record(self, arm: Branches) -> dict[str, Any]:
        against = {name: found and asdict(found) for name, found in self.against(arm).items()}
        noise = {"layers": _noise_records(arm.noise), "kinds": _noise_records(_pool(arm.noise))}
        return {
            "name": arm.name,
            "losses": arm.losses,
            "mean": arm.mean,
            "deviation": arm.deviation,
            "gap_percent": self.gap(arm),
            "gap_deviation_percent": self.percent(arm.deviation),
            "against": against,
            "gradient_noise": noise,
        }


def _pool(noise: Mapping[str, Noise]) -> dict[str, Noise]:
    """By kind of layer, and of all of them."""
    kinds = gradient_noise.pool(noise)
    return kinds | {"all": functools.reduce(operator.add, kinds.values())} if kinds else {}


def _noise_records(found: Mapping[str, Noise]) -> dict[str, dict[str, float]]:
    return {
        name: asdict(noise) | {"relative_bias": noise.relative_bias, "relative_deviation": noise.relative_deviation}
        for name, noise in found.items()
    }


def _share_record(share: MeanShare) -> dict[str, Any]:
    ratios = {"input_to_deviation": to_deviation(share.input), "gradient_to_deviation": to_deviation(share.gradient)}
    return asdict(share) | ratios


def _with_spread(value: str, spread: float | None, form: str) -> str:
    return value if spread is None else f"{value} ± {form.format(spread)}".strip()


def _cells(found: Difference | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return f"{found.difference:+.4f} ± {found.error:.4f}", f"{found.t:+.1f}", f"{found.p:.1g}"
