"""The record of a run as tables on a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.table import Column, Table

from benchmarks.stages_tables import stage_tables

_MIB = 2**20


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """Of every model what was measured."""
    for name, model in record["models"].items():
        yield _arms(name, model, record["settings"])
        if "compile" in model:
            yield _compile(name, model["compile"])
        if "failed" in model.get("stages", ()):
            yield Table(title=f"{name}: stages failed: {model['stages']['failed']}", title_justify="left")
        elif "stages" in model:
            yield from stage_tables(model["stages"], _steps(model))


def _arms(name: str, model: dict[str, Any], settings: dict[str, Any]) -> Table:
    optimizer = model.get("optimizer_seconds")
    caption = "medians, quartiles in brackets; a step is forward, backward and freeing the gradients" + (
        f"; AdamW, the same for every arm, takes {1e3 * optimizer:.0f} ms more" if optimizer else ""
    )
    title = f"{name}, {model['tokens']} tokens: {settings['rounds']} rounds on {settings['threads']} threads"
    table = Table(Column("arm", no_wrap=True), title=title, caption=caption, title_justify="left")
    ratio = f"x {settings['baseline']}"
    for heading in ("step, ms", ratio, "forward, ms", ratio, "backward, ms", ratio, "saved, MiB", "peak, MiB"):
        table.add_column(heading, justify="right")
    for arm, row in model["arms"].items():
        if "failed" in row:
            table.add_row(arm, "failed")
            table.caption = f"{table.caption}\n{arm} failed: {row['failed']}"
            continue
        cells = [cell for part in ("step", "forward", "backward") for cell in _times(row.get(part))]
        memory = row.get("memory", {})
        table.add_row(arm, *cells, _mib(memory.get("saved_bytes")), _mib(memory.get("peak_bytes")))
    return table


def _times(part: dict[str, Any] | None) -> tuple[str, str]:
    """Milliseconds and ratio of a part of the step."""
    if part is None:
        return "-", "-"
    seconds, ratio = part["seconds"], part["ratio"]
    of_baseline = f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "-"
    low, middle, high = (1e3 * seconds[key] for key in ("low", "median", "high"))
    return f"{middle:.0f} ({low:.0f}-{high:.0f})", of_baseline


def _compile(name: str, compiled: dict[str, Any]) -> Table:
    once = compiled["once"]
    if "failed" in once:
        made = once["failed"]
    else:
        made = f"{once['inductor_seconds']:.1f} s by Inductor, {once['kernels_seconds']:.1f} s for our kernels"
    caption = f"once a machine, and in neither column: {made}"
    table = Table("arm", "cold, s", "warm, s", title=f"{name}: compile time", caption=caption, title_justify="left")
    for arm, row in compiled["arms"].items():
        found = (row[kind].get("failed") or f"{row[kind]['seconds']:.1f}" for kind in ("cold", "warm"))
        table.add_row(arm, *found)
    return table


def _steps(model: dict[str, Any]) -> dict[str, list[float]]:
    return {name: row["step"]["rounds"] for name, row in model["arms"].items() if "step" in row}


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / _MIB:.1f}"
