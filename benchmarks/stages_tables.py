"""The stages of a step as tables on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from benchmarks.bench_arms import BASELINE
from benchmarks.bench_profile import INSIDE, PARTS
from benchmarks.bench_timing import paired_difference


def stage_tables(record: dict[str, Any], steps: Mapping[str, Sequence[float]] | None = None) -> Iterator[Table]:
    """Kernels, their totals, and what the profiler saw. steps: measured seconds of whole steps, by arm and round."""
    yield _kernels(record)
    yield _totals(record, steps or {})
    for name, profile in record.get("profile", {}).items():
        yield _profile(name, profile)


def _kernels(record: dict[str, Any]) -> Table:
    gigabytes = record["memory_bytes_a_second"] / 1e9
    caption = f"x copy: in cache; x memory: of a copy out of cache, {gigabytes:.1f} GB/s read and as much written"
    table = Table(
        Column("kernel", no_wrap=True),
        title=f"kernels of a step, {record['recipe']}",
        caption=caption,
        title_justify="left",
    )
    for heading in ("calls", "ms", "quartiles", "ms a step", "x copy", "x memory", "x torch.mm", "mean adds, ms"):
        table.add_column(heading, justify="right")
    for row in record["kernels"]:
        low, median, high = (1e3 * row["seconds"][key] for key in ("low", "median", "high"))
        table.add_row(
            *(row["what"], str(row["count"]), f"{median:.2f}", f"{low:.2f}-{high:.2f}", f"{row['count'] * median:.1f}"),
            *(_show(row.get(key), "{:.1f}") for key in ("x_copy", "x_memory")),
            *(_show(row.get("x_mm"), "{:.2f}"), _ms(row.get("mean_seconds"))),
        )
    return table


def _totals(record: dict[str, Any], steps: Mapping[str, Sequence[float]]) -> Table:
    """The sum over kernels, beside the difference that whole steps show."""
    totals, own = dict(record["totals"]), f"spectral {record['recipe']}"
    table = Table("milliseconds of a step", "ms", title=f"stages, {record['recipe']}", title_justify="left")
    mean, products = totals.pop("mean removal"), totals.pop("torch.mm", 0.0)
    for name, seconds in totals.items():
        table.add_row(name, _ms(seconds))
    if "scaled_mm" in totals:
        table.add_row("torch.mm, bf16, of the same products", _ms(products))
        table.add_row("scaled_mm beyond torch.mm", _ms(totals["scaled_mm"] - products))
    table.add_row("all of these, beyond torch.mm", _ms(sum(totals.values()) - products))
    table.add_row("of that the mean's removal", _ms(mean))
    for name, profile in record.get("profile", {}).items():
        inside = (profile["operators"].get(kind, {"seconds": 0.0})["seconds"] for kind in ("torch.mm", INSIDE))
        table.add_row(f"torch.mm in the step: {name}", _ms(sum(inside)))
    for other in (BASELINE, "spectral nvfp4-plain"):
        if own != other and {own, other} <= steps.keys():
            difference = paired_difference(steps[own], steps[other])
            table.add_row(f"whole step: {own} beyond {other}", _ms(difference))
    return table


def _profile(name: str, profile: dict[str, Any]) -> Table:
    step = profile["step_seconds"]
    table = Table("operator", title=f"profile of a step, {name}: {1e3 * step:.0f} ms", title_justify="left")
    for heading in ("calls", "ms", "of the step"):
        table.add_column(heading, justify="right")
    whole = profile["operators"].get("spectral::scaled_mm", {"seconds": 0.0})
    longest_first = sorted(
        profile["operators"].items(),  # the parts of scaled_mm follow it
        key=lambda item: (-(whole if item[0] in PARTS else item[1])["seconds"], item[0] in PARTS),
    )
    for operator, row in longest_first:
        table.add_row(operator, f"{row['calls']:.0f}", _ms(row["seconds"]), f"{100 * row['seconds'] / step:.0f} %")
    return table


def _ms(seconds: float | None) -> str:
    return _show(None if seconds is None else 1e3 * seconds, "{:.2f}")


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
