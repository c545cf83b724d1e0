"""What a run measured: as a table for a person, as JSON for a program."""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from examples.arms import BF16
from examples.corpus import Corpus
from examples.training import TrainingConfig

BASELINE = BF16.name  # the arm that gaps are measured against, where it ran


@dataclass
class ArmResult:
    """One arm's measurements, growing while it trains.

    train_loss, step_seconds: of each step. validation: (steps taken, loss). Losses in nats a byte.
    compile_seconds: for training and evaluation, less with a warm cache. saved_bytes: for backward.
    """

    name: str
    train_loss: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    compile_seconds: float | None = None
    saved_bytes: int | None = None
    interrupted: bool = False

    def summary(self) -> str:
        """The state of the arm in a few words."""
        loss = f"validation loss {self.validation[-1][1]:.4f}" if self.validation else "no validation loss"
        return f"interrupted, {loss}" if self.interrupted else loss


@dataclass
class Run:
    """A configuration, and the results of its arms in the order in which they ran."""

    config: TrainingConfig
    corpus: Corpus
    arms: list[ArmResult] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        return any(arm.interrupted for arm in self.arms)

    def gap(self, arm: ArmResult) -> float | None:
        """Validation loss above the baseline's after as many steps, in percent; None where there is none."""
        baseline = next((dict(other.validation) for other in self.arms if other.name == BASELINE), {})
        if arm.name == BASELINE or not arm.validation or arm.validation[-1][0] not in baseline:
            return None
        step, loss = arm.validation[-1]
        return 100 * (loss / baseline[step] - 1)

    def table(self) -> Table:
        """One row an arm, its training loss smoothed; an interrupted one's says when it was validated."""
        title = f"{self.config.steps} steps from the same weights on the same batches"
        table = Table("arm", title=title, caption=cpu_name())
        losses = ("training\nloss", "validation\nloss", f"gap to\n{BASELINE}")
        for column in (*losses, "median\nstep", "saved for\nbackward", "compile\ntime"):
            table.add_column(column, justify="right")
        for arm in self.arms:
            step = 1000 * statistics.median(arm.step_seconds) if arm.step_seconds else None
            table.add_row(
                f"{arm.name}\ninterrupted" if arm.interrupted else arm.name,
                _show(smooth(arm.train_loss)[-1] if arm.train_loss else None, "{:.3f}"),
                _last_validation(arm, self.config.steps),
                _show(self.gap(arm), "{:+.2f} %"),
                _show(step, "{:.0f} ms"),
                _show(arm.saved_bytes and arm.saved_bytes / 2**20, "{:.1f} MiB"),
                _show(arm.compile_seconds, "{:.0f} s"),
            )
        return table

    def write(self, folder: Path) -> None:
        """Write `result.json` to the folder, which is made where needed."""
        arms = [asdict(arm) | {"gap_percent": self.gap(arm)} for arm in self.arms]
        record = provenance(self.config, self.corpus) | {"interrupted": self.interrupted, "arms": arms}
        write_json(folder / "result.json", record)


def smooth(values: Sequence[float], memory: float = 0.9) -> list[float]:
    """Exponential moving average without the pull towards its start: each value so far weighs memory^age."""
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = memory * total + value, memory * weight + 1
        averages.append(total / weight)
    return averages


def provenance(config: TrainingConfig, corpus: Corpus) -> dict[str, Any]:
    """Configuration, text, versions and machine: what a figure needs beside it to be comparable."""
    return {
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": asdict(config),
        "corpus": {"train": len(corpus.train), "validation": len(corpus.validation), "sha256": corpus.digest},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write the record whole or not at all: an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def cpu_name() -> str:
    """The CPU's model, as Linux tells it, or the nearest that Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _last_validation(arm: ArmResult, steps: int) -> str:
    if not arm.validation:
        return "-"
    step, loss = arm.validation[-1]
    return f"{loss:.4f}" if step == steps else f"{loss:.4f}\nat step {step}"


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
