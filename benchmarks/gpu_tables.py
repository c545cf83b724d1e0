"""The record of `benchmarks.gpu` as tables."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table


def tables(record: dict[str, Any]) -> Iterator[Table]:
    for found in record.get("products", ()):
        m, n, k = found["shape"]
        table = _table(f"{record['device']}: {m} x {n} x {k}", "TFLOP/s", "x cuBLAS bf16")
        for name, row in found["arms"].items():
            seconds = row["seconds"]["median"]
            table.add_row(name, f"{1e3 * seconds:.3f}", f"{found['flop'] / seconds / 1e12:.0f}", _ratio(row))
        yield _with_failures(table, found)
    if "quantise" in record:
        table = _table("quantising bf16 [8192, 4096]", "GB/s", "share of a copy's")
        for name, row in record["quantise"]["arms"].items():
            cells = f"{row['bytes_per_second'] / 1e9:.0f}", f"{row['share_of_copy']:.0%}"
            table.add_row(name, f"{1e3 * row['seconds']['median']:.3f}", *cells)
        yield _with_failures(table, record["quantise"])
    if "rows" in record.get("fp8", ()):
        table = Table("K", "fp8", "bf16", title="MXFP4 products: relative error of the carrier")
        for row in record["fp8"]["rows"]:
            table.add_row(str(row["k"]), f"{row['fp8']:.1e}", f"{row['bf16']:.1e}")
        table.caption = f"{record['fp8']['lost_blocks']} blocks out of E5M2's range"
        yield table
    for name in ("block", "gpt"):
        if name in record.get("steps", ()):
            found = record["steps"][name]
            table = _table(f"{name}: a training step, {found['tokens']} tokens", "peak, MiB", "x Inductor bf16")
            for arm, row in found["arms"].items():
                peak = f"{row['peak_bytes'] / 2**20:.0f}"
                table.add_row(arm, f"{1e3 * row['seconds']['median']:.2f}", peak, _ratio(row))
            yield _with_failures(table, found)


def _table(title: str, *headings: str) -> Table:
    return Table("", "ms", *headings, title=title, title_justify="left")


def _ratio(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _with_failures(table: Table, found: dict[str, Any]) -> Table:
    table.caption = "\n".join(f"{name} failed: {why}" for name, why in found["failed"].items())
    return table
