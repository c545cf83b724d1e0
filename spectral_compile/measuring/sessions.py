"""Where measurements go: a session for each compiled graph, its file and its scalars; the latest of all for a table."""

import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from spectral_compile._torch import compiled_frame, summary_writer
from spectral_compile.errors import SpectralValueError, harmless
from spectral_compile.randomness import rank

WIDTH = 150
_IDLE = -1
_COLUMNS = ("snr_db", "clipped", "mean_to_deviation", "mean_to_deviation_after", "amax", "cosine")
_Key = tuple[int, int, str, str, str]  # frame, module, layer, role, operand
_sessions: list["Session"] = []  # a graph's code knows its session by number, and the caches do not see it: an input
_calls: Counter[tuple[int, int]] = Counter()  # by frame and module: modules share code, and code has many graphs
_writers: dict[str, Any] = {}
_latest: dict[_Key, tuple[int, dict[str, Any]]] = {}  # with the session that measured it
_lock = threading.Lock()  # autograd runs backwards on threads of its own


class Session:
    """Of one compiled graph: of the training calls of each module that runs it, every so many are measured."""

    def __init__(self, every: int, files: Sequence[Path] = (), tensorboard: str = "") -> None:
        self.every = every
        self.frame = compiled_frame()
        self.number = len(_sessions)
        _sessions.append(self)
        self._files = [file.with_stem(f"{file.stem}.rank{rank()}") if rank() else file for file in files]
        self._writer = _writer(tensorboard) if tensorboard else None
        self._modules: dict[int, int] = {}  # in the order in which they came to run this graph
        self._seen: dict[tuple[int, tuple[str, ...]], deque[int]] = {}  # the calls that an operand was measured in last
        for file in self._files:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            except OSError as error:
                raise SpectralValueError(f"Numerics(file={str(file)!r}) cannot be written: {error}") from None

    def step(self, training: bool, arguments: Sequence[Any] = ()) -> Tensor:
        """What a call of the graph with these arguments is given: int64 [3], the number of the call, negative where
        nothing is to be measured, of the session and of the module. On the host, where it is read.
        """
        # Told by the first parameter, which is another one in each.
        module = next((id(argument) for argument in arguments if isinstance(argument, nn.Parameter)), 0)
        call = _calls[self.frame, module]
        _calls[self.frame, module] += training
        if not training or call % self.every:
            return torch.tensor([_IDLE, self.number, 0], device="cpu")
        order = self._modules.setdefault(module, len(self._modules))
        return torch.tensor([call, self.number, order], device="cpu")

    def is_new(self, call: int, module: int, where: Sequence[str]) -> bool:
        """Whether an operand was not measured in this call: a checkpointed region computes its forward twice."""
        calls = self._seen.setdefault((module, tuple(where)), deque(maxlen=8))
        if call in calls:
            return False
        calls.append(call)
        return True

    def record(self, call: int, module: int, where: Sequence[str], found: Mapping[str, Any]) -> None:
        """Keep what was found, under all its names."""
        lines = [{"step": call, **_names(name, module), **found} for name in dict.fromkeys(where)]
        for line in lines:
            key = (self.frame, module, line["layer"], line["role"], line["operand"])
            number, last = _latest.get(key, (self.number, line))
            if number != self.number or last["step"] <= call:  # an older call's backward may come later
                _latest[key] = self.number, line
            for column in _COLUMNS if self._writer is not None else ():
                if line.get(column) is not None:
                    tag = f"spectral/{column}/{line['layer']}/{line['role']}/{line['operand']}"
                    self._writer.add_scalar(tag, line[column], call)  # type: ignore[union-attr]
        for file in self._files:
            with file.open("a", encoding="utf-8") as opened:
                opened.writelines(json.dumps(line) + "\n" for line in lines)


def record(step: Tensor, where: Sequence[str], find: Callable[[], Mapping[str, Any]]) -> None:
    """Have something found, in a call that `Session.step` says is measured, and keep it. A failure is a warning."""
    call, number, module = step.tolist()
    session = _sessions[number]
    with harmless("numerics"):
        with _lock:
            if not session.is_new(call, module, where):
                return
        found = find()
        with _lock:
            session.record(call, module, where, found)


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
        rows = sorted(_latest.items(), key=lambda item: _in_order(item[0]))
        return Measurements([dict(row) for _, (_, row) in rows])


class Measurements:
    """What `numerics()` returns."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __rich__(self) -> Table:
        nothing = "nothing was measured yet: is option numerics set, and was there a call with a backward?"
        table = Table(title=f"numerics of {len(self.rows)} operands and products" if self.rows else nothing)
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


def _in_order(key: _Key) -> tuple[Any, ...]:
    """Layers by name, numbers in them as numbers."""
    frame, module, layer, role, operand = key
    steps = [(int(step), "") if step.isdigit() else (-1, step) for step in layer.split(".")]
    return frame, module, steps, role != "fprop", role, operand


def _names(name: str, module: int) -> dict[str, str]:
    layer, role, operand = name.split("\t")
    return {"layer": f"{layer} (module {module + 1})" if module else layer, "role": role, "operand": operand}


def _writer(folder: str) -> Any:
    """One for each folder, however many graphs write there."""
    folder = f"{folder}/rank{rank()}" if rank() else folder
    if folder not in _writers:
        try:
            _writers[folder] = summary_writer(folder)
        except ImportError:
            raise SpectralValueError(
                "Numerics(tensorboard=...) needs TensorBoard: pip install tensorboard, or use file=... for JSON lines"
            ) from None
        except OSError as error:
            raise SpectralValueError(f"Numerics(tensorboard={folder!r}) cannot be written: {error}") from None
    return _writers[folder]
