"""What a report says first: products, work, memory and time, in a few numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sympy

from spectral_compile.report.folder import Dumped
from spectral_compile.report.sizes import Size, flops, number, readable

_ROLES = ("fprop", "dgrad", "wgrad", "other")


def summary(dumped: Dumped) -> dict[str, Any]:
    """JSON-ready: numbers where sizes are known, text where they are symbolic."""
    rows = dumped.plan["rows"]
    four_bits, total = _work(rows, quantized=True), _work(rows)
    share = sympy.simplify(four_bits / total) if total != 0 else sympy.nan  # of symbolic sizes, too, it is often known
    return {
        "products": len(rows),
        "in_four_bits": sum(not row["reason"] for row in rows),
        "reasons": Counter(row["reason"] for row in rows if row["reason"]).most_common(),
        "formats": Counter(label for row in rows for label in formats(row)).most_common(),
        "work": number(total),
        "work_in_four_bits": number(four_bits),
        "share_of_work": float(share) if share.is_number and share.is_finite else None,
        "roles": [_role(role, rows) for role in _ROLES if any(row["role"] == role for row in rows)],
        "saved": dumped.memory.get("saved"),
        "saved_unchanged": dumped.memory.get("saved_unchanged"),
        "saved_text": _text(dumped.memory.get("saved")),
        "saved_unchanged_text": _text(dumped.memory.get("saved_unchanged")),
        "kept": dumped.memory.get("kept", []),
        "seconds": dumped.seconds,
    }


def formats(row: Mapping[str, Any]) -> list[str]:
    """The formats of a row's operands, each once."""
    return list(dict.fromkeys(operand["format"] for operand in (row["a"], row["b"]) if operand))


def row_flops(row: Mapping[str, Any]) -> int | str | None:
    """Of one product: None for what is no product of two matrices."""
    found = flops(row["m"], row["n"], row["k"])
    return None if found is None else number(found)


def _role(role: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if row["role"] == role]
    four_bits = sum(not row["reason"] for row in own)
    return {
        "role": role,
        "in_four_bits": four_bits,
        "left_alone": len(own) - four_bits,
        "work_in_four_bits": number(_work(own, quantized=True)),
        "work_left_alone": number(_work(own, quantized=False)),
    }


def _work(rows: Sequence[Mapping[str, Any]], quantized: bool | None = None) -> Size:
    found = (flops(row["m"], row["n"], row["k"]) for row in rows if quantized in (None, not row["reason"]))
    return sum((one for one in found if one is not None), start=sympy.Integer(0))


def _text(size: Any) -> str:
    return "" if size is None else readable(sympy.sympify(size))
