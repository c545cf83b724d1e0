"""Reading a dump's folder back: a report is made of its files alone, so that it can be made again at any time."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectral_compile.errors import SpectralValueError

GRAPHS = "graphs.jsonl"
ABOUT = "about.json"
MEMORY = "memory.json"
NUMERICS = "numerics.jsonl"
_KINDS = ("joint", "forward", "backward")


@dataclass(frozen=True)
class Dumped:
    """What a folder holds. stages: as `stages.stage` made them, joint ones first; code: for each file of Python, the
    lines of its graph; numerics: one measurement a line, oldest first.
    """

    folder: Path
    about: dict[str, Any]
    plan: dict[str, Any]
    stages: list[dict[str, Any]]
    code: dict[str, list[str]]
    seconds: dict[str, float]
    memory: dict[str, Any]
    numerics: list[dict[str, Any]]


def graph_folders(folder: Path) -> list[Path]:
    """The folders of single graphs: the folder itself, or those that a dump of several made in it."""
    if not folder.is_dir():
        raise SpectralValueError(f"{folder} is no folder")
    if (folder / "plan.json").exists():
        return [folder]
    found = sorted(file.parent for file in folder.glob("*/plan.json"))
    if not found:
        raise SpectralValueError(
            f"{folder} holds no dump: there is no plan.json in it, nor in a folder of it."
            ' A dump is written with options={"dump": "out"}, or with SPECTRAL_DUMP=out in the environment'
        )
    return found


def read(folder: Path) -> Dumped:
    """Everything that a report tells. Raises ValueError where that is missing."""
    if not (folder / GRAPHS).exists():
        raise SpectralValueError(f"{folder} was written by an older version, without {GRAPHS}: dump again")
    try:
        stages = {stage["name"]: stage for stage in _lines(folder / GRAPHS)}  # what is written twice counts once
        return Dumped(
            folder,
            _json(folder / ABOUT),
            _json(folder / "plan.json"),
            sorted(stages.values(), key=lambda stage: _KINDS.index(stage["kind"])),
            {file.stem: _graph_lines(file) for file in sorted(folder.glob("*.py"))},
            _json(folder / "timings.json"),
            _json(folder / MEMORY),
            list(_measurements(folder / NUMERICS)),
        )
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        raise SpectralValueError(f"{folder} cannot be read: {type(error).__name__}: {error}") from None


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def _measurements(file: Path) -> Iterator[dict[str, Any]]:
    """Training may be writing the last line just now, and may have measured what is no number."""
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            measured = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(measured, dict) and {"step", "layer", "role", "operand"} <= measured.keys():
            yield {key: _finite(value) for key, value in measured.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _graph_lines(file: Path) -> list[str]:
    """The function of the graph, without what a file has around it to make it run."""
    text = file.read_text(encoding="utf-8")
    begin = text.find("def forward(")
    text = text[max(begin, 0) :].partition("\n\n\ndef inputs():")[0]
    return [line.rstrip() for line in text.splitlines()]
