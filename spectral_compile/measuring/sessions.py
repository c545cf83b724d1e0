"""Where measurements go: a session for each compiled graph, its file and its scalars; the latest of all for a table."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from spectral_compile._torch import summary_writer
from spectral_compile.errors import SpectralValueError

WIDTH = 150
_IDLE = -1
_COLUMNS = ("snr_db", "clipped", "mean_to_deviation", "mean_to_deviation_after", "amax", "cosine")
_sessions: list["Session"] = []  # a graph's code knows its session by number, and the caches do not see it: an input
_latest: dict[tuple[str, str, str], dict[str, Any]] = {}
_lock = threading.Lock()  # autograd runs backwards on threads of its own


class Session:
    """Of one compiled graph: counts its training calls, of which every so many are measured."""

    def __init__(self, every: int, file: Path | None, tensorboard: str) -> None:
        self.every = every
        self.file = file
        self.calls = 0
        self._writer = _writer(tensorboard) if tensorboard else None
        self._seen: dict[tuple[str, ...], int] = {}  # the step in which an operand was measured last
        self._number = len(_sessions)
        _sessions.append(self)
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            except OSError as error:
                raise SpectralValueError(f"Numerics(file={str(file)!r}) cannot be written: {error}") from None

    def step(self, training: bool) -> Tensor:
        """What a call of the graph is given: int64 [2], the number of the call, negative where nothing is to be
        measured, and of the session. On the host, where it is read, whatever the device.
        """
        call = self.calls
        self.calls += training
        measured = training and call % self.every == 0
        return torch.tensor([call if measured else _IDLE, self._number])

    def record(self, step: int, where: Sequence[str], found: Mapping[str, Any]) -> None:
        """Keep what was found; once a step, though a checkpointed region computes its forward twice."""
        if self._seen.get(tuple(where)) == step:
            return
        self._seen[tuple(where)] = step
        lines = [{"step": step, **_names(name), **found} for name in where]
        for line in lines:
            _latest[line["layer"], line["role"], line["operand"]] = line
            if self._writer is not None:
                for key in _COLUMNS:
                    if line.get(key) is not None:
                        tag = f"spectral/{key}/{line['layer']}/{line['role']}/{line['operand']}"
                        self._writer.add_scalar(tag, line[key], step)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


def record(step: Tensor, where: Sequence[str], found: Mapping[str, Any]) -> None:
    """What the operators that measure found in a call that `Session.step` says is measured."""
    call, session = step.tolist()
    with _lock:
        _sessions[session].record(call, where, found)


def is_idle(step: Tensor) -> bool:
    """Whether this call is not to be measured."""
    return int(step[0]) == _IDLE


def where(layer: str, role: str, operand: str) -> str:
    """An operand's name, as an operator's argument."""
    return "\t".join((layer, role, operand))


def numerics() -> "Measurements":
    """The latest measurements of each operand, of all models that were compiled with option `numerics`.

    Print them for a table; `rows` has them as data: step, layer, role, operand, and of operands snr_db, clipped, amax,
    mean_to_deviation and mean_to_deviation_after, of products cosine; None for what is not defined.
    """
    with _lock:
        return Measurements([dict(row) for row in _latest.values()])


class Measurements:
    """What `numerics()` returns."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __rich__(self) -> Table:
        table = Table(title=f"numerics of {len(self.rows)} operands and products")
        for heading in ("layer", "role", "operand", "step"):
            table.add_column(heading)
        for heading in _COLUMNS:
            table.add_column(heading.replace("_", " "), justify="right")
        for row in self.rows:
            names = (row["layer"], row["role"], row["operand"], str(row["step"]))
            table.add_row(*map(escape, names), *_cells(row))
        return table

    def __str__(self) -> str:
        console = Console(width=WIDTH)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    for key in _COLUMNS:
        value = row.get(key)
        yield "" if value is None else f"{value:.2%}" if key == "clipped" else f"{value:.4g}"


def _names(name: str) -> dict[str, str]:
    return dict(zip(("layer", "role", "operand"), name.split("\t"), strict=True))


def _writer(folder: str) -> Any:
    try:
        return summary_writer(folder)
    except ImportError:
        raise SpectralValueError(
            "Numerics(tensorboard=...) needs TensorBoard: pip install tensorboard, or use file=... for JSON lines"
        ) from None
