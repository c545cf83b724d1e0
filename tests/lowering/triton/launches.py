"""The kernels as they are launched, for compiling without a GPU: each configuration with what asks most of it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spectral_compile.lowering.triton import launch as how
from spectral_compile.lowering.triton.device.amax import amax_of_tiles, finish_amax
from spectral_compile.lowering.triton.device.means import count_rows, finish_means, sum_chunks
from spectral_compile.lowering.triton.device.quantize import quantize_tiles
from spectral_compile.lowering.triton.device.values import centered, values_of_codes
from spectral_compile.lowering.triton.launch import Tile
from tests.lowering.triton.targets import Compiled, compile_for

_EXTENTS = {"rows": "i32", "cols": "i32"}
_MATRIX = {"x": "*bf16", **_EXTENTS, "row_stride": "i32", "col_stride": 1}
_DIVISIBLE = ("rows", "cols", "row_stride")


@dataclass(frozen=True)
class Launch:
    """arguments: as `targets.compile_for` takes them. divisible: of the numbers among them; all pointers are."""

    kernel: Any
    arguments: Mapping[str, Any]
    warps: int
    divisible: tuple[str, ...] = _DIVISIBLE


def compiled(name: str, architecture: int) -> Compiled:
    """The launch of this name, compiled once a process."""
    return _compiled(name, architecture)


@functools.cache
def _compiled(name: str, architecture: int) -> Compiled:
    launch = LAUNCHES[name]
    pointers = [k for k, v in launch.arguments.items() if isinstance(v, str) and v.startswith("*")]
    numbers = [k for k in launch.divisible if launch.arguments.get(k) == "i32"]
    options = {"num_warps": launch.warps, "enable_fp_fusion": False}
    return compile_for(architecture, launch.kernel, launch.arguments, (*pointers, *numbers), **options)


@dataclass(frozen=True)
class Side:
    """What the kernel is compiled for on one side. mean: none, of all rows alike, or of the rows that count."""

    format: str = "nvfp4"
    rule: str = "amax"
    tile_rows: int = 1
    hadamard: bool = False
    mean: str = ""
    stochastic: bool = False


def _quantize(row: Side | None, col: Side | None, tile: Tile = how.QUANTIZE, **others: Any) -> Launch:
    arguments = {**_MATRIX, "ROWS": tile.rows, "GROUPS": tile.groups}
    arguments["SAME_MEAN"] = row is not None and col is not None and row.mean == col.mean == "all"
    for name, side in (("row", row), ("col", col)):
        arguments |= {f"{name}_{k}": v for k, v in _side(side).items()}
        of = side or Side()
        constants = {"FORMAT": of.format, "RULE": of.rule, "TILE_ROWS": of.tile_rows, "HADAMARD": of.hadamard}
        arguments |= {f"{name.upper()}_{k}": v for k, v in constants.items()}
    return Launch(quantize_tiles, arguments | others, tile.warps)


def _side(side: Side | None) -> dict[str, Any]:
    if side is None:
        names = ("mean", "counting", "amax", "seed", "codes", "scales", "tensor_scale")
        return {"stream": "i32", **dict.fromkeys(names)}
    return {
        "mean": "*fp32" if side.mean else None,
        "counting": "*fp32" if side.mean == "counting" else None,
        "amax": "*fp32" if side.format == "nvfp4" else None,
        "seed": "*i64" if side.stochastic else None,
        "stream": "i32",
        "codes": "*i64",
        "scales": "*u8",
        "tensor_scale": "*fp32",
    }


def _tiled(tile: Tile) -> dict[str, int]:
    return {"ROWS": tile.rows, "GROUPS": tile.groups}


_FOUR_SIX = Side(rule="four_six")
_CENTERED = {**_MATRIX, "mean": "*fp32", "counting": "*fp32"}
_PARTIAL = {"sums": "*fp32", "least": "*fp32", "largest": "*fp32", "nonzeros": "*i32"}

LAUNCHES: dict[str, Launch] = {
    "activation": _quantize(Side(mean="all"), Side(mean="all")),
    "gradient": _quantize(Side(mean="counting", stochastic=True), Side(mean="all", hadamard=True, stochastic=True)),
    "gradient, mxfp4": _quantize(
        Side("mxfp4", "floor", mean="counting", stochastic=True),
        Side("mxfp4", "floor", mean="all", hadamard=True, stochastic=True),
        how.QUANTIZE_HEAVY,
    ),
    "weight": _quantize(Side(tile_rows=16), None),
    "weight, mxfp4": _quantize(Side("mxfp4", "floor", tile_rows=32), None),
    "weight, four_six": _quantize(Side(rule="four_six", tile_rows=16), None, how.QUANTIZE_HEAVY),
    "four_six": _quantize(_FOUR_SIX, _FOUR_SIX, how.QUANTIZE_HEAVY),
    "columns": _quantize(None, Side()),
    "rows, fp32": _quantize(Side(), None, x="*fp32"),
    "rows, strided": _quantize(Side(), None, col_stride="i32"),
    "amax": Launch(
        amax_of_tiles,
        {**_CENTERED, "partials": "*i32", "HADAMARD": False, "DOWN": False, **_tiled(how.AMAX)},
        how.AMAX.warps,
    ),
    "amax, transformed": Launch(
        amax_of_tiles,
        {**_CENTERED, "partials": "*i32", "HADAMARD": True, "DOWN": True, **_tiled(how.AMAX)},
        how.AMAX.warps,
    ),
    "finish_amax": Launch(
        finish_amax, {"partials": "*i32", "count": "i32", "results": "*fp32", "BLOCK": how.SEARCH}, 4, ()
    ),
    "sum_chunks": Launch(
        sum_chunks,
        {
            **_MATRIX,
            **_PARTIAL,
            "row_has_nonzero": "*i8",
            "TILES": how.MEAN_TILES,
            "ROWS": how.MEAN.rows,
            "COLS": how.MEAN.groups * 16,
        },
        how.MEAN.warps,
    ),
    "count_rows": Launch(
        count_rows,
        {
            "row_has_nonzero": "*i8",
            "rows": "i32",
            "strips": "i32",
            "counting": "*fp32",
            "counts": "*i32",
            "ROWS": how.COUNT_ROWS,
        },
        4,
        (),
    ),
    "finish_means": Launch(
        finish_means,
        {
            **_PARTIAL,
            **dict.fromkeys(("chunks", "count_programs", "rows", "cols", "min_rows"), "i32"),
            **dict.fromkeys(("mean", "total", "common"), "*fp32"),
            "counts": "*i32",
            "partials": "*i32",
            "COLS": how.FINISH,
            "BLOCK": how.SEARCH,
        },
        4,
        (),
    ),
    "values": Launch(
        values_of_codes,
        {
            "codes": "*u8",
            "scales": "*u8",
            "tensor_scale": None,
            "values": "*bf16",
            **_EXTENTS,
            "blocks": "i32",
            "FORMAT": "nvfp4",
            "TILE_ROWS": 1,
            "ROWS": how.VALUES.rows,
            "COLS": how.VALUES.groups * 16,
        },
        how.VALUES.warps,
        (*_DIVISIBLE, "blocks"),
    ),
    "center": Launch(centered, {**_CENTERED, "result": "*fp32", **_tiled(how.CENTER)}, how.CENTER.warps),
}
