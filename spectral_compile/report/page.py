"""The report: one HTML file of a dump's folder, that needs nothing else and asks no network.

The page is `html/`: a template, a style sheet and scripts, put into one file. What it shows is data, embedded as JSON
that cannot end its element; scripts put text into the page as text only. A content security policy that allows these
very scripts and nothing else sees to it.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from spectral_compile.report import folder as files
from spectral_compile.report.bands import Bands
from spectral_compile.report.folder import Dumped
from spectral_compile.report.history import fates, serves
from spectral_compile.report.layout import lay_out
from spectral_compile.report.summary import row_flops, summary

_STYLES = ("report.css", "tools.css")  # pages of text, and the picture, the code and the charts
_SCRIPTS = (
    *("core.js", "table.js", "view.js", "summary.js", "products.js", "graph.js", "pointer.js"),
    *("panel.js", "code.js", "numerics.js", "main.js"),
)
_STEPS = 300  # of a run's numerics, at most


def write(folder: Path, file: Path | None = None) -> Path:
    """Make the report of a graph's folder, there or as `file`. Raises ValueError for a folder that is no dump."""
    file = file or folder / "report.html"
    file.write_text(render(page_data(files.read(folder))), encoding="utf-8")
    return file


def render(data: Mapping[str, Any]) -> str:
    """The page that shows this data."""
    here = resources.files("spectral_compile.report") / "html"
    style, script = (_joined(here / name for name in names) for names in (_STYLES, _SCRIPTS))
    script = f'(() => {{\n"use strict";\n{script}\n}})();\n'
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    parts = {
        "title": html.escape(data["title"]),
        "policy": policy + "; form-action 'none'",
        "style": style,
        "script": script,
        "data": embedded(data),
    }
    template = (here / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)  # one pass: what is put in stays as it is


def embedded(data: Any) -> str:
    """JSON that an HTML parser takes for nothing else: no "<" is left in it, and nothing beyond ASCII."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def page_data(dumped: Dumped) -> dict[str, Any]:
    """All that the page shows."""
    strings = _Strings()
    about = dumped.about
    joint = [stage for stage in dumped.stages if stage["kind"] == "joint"]
    bands = Bands((joint or dumped.stages)[0]["nodes"] if dumped.stages else [])
    stages = [_stage(stage, dumped, bands, strings) for stage in dumped.stages]
    for number, stage in enumerate(joint):
        after = joint[number + 1 : number + 2] or dumped.stages[len(joint) :]
        stages[number]["fates"] = fates(stage, after) if after else {}
    by_product = dumped.memory.get("by_product") or [None] * len(dumped.plan["rows"])
    rows = zip(dumped.plan["rows"], by_product, strict=True)
    return {
        "title": f"{about.get('model') or 'graph'} {about.get('graph', dumped.folder.name)} - spectral-compile",
        "folder": str(dumped.folder),
        "about": {"graph": dumped.folder.name, **about},
        "summary": summary(dumped),
        "rows": [
            {**row, "flops": row_flops(row), "saved": 0 if row["role"] == "fprop" else saved} for row, saved in rows
        ],
        "stages": stages,
        "traced": strings.all(dumped.code.get("dynamo", [])),
        "numerics": _thinned(dumped.numerics),
        "strings": strings.known,
    }


def _thinned(numerics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a long run some measured steps, evenly spread, the last among them: charts are a few hundred points wide."""
    steps = sorted({line.get("step", 0) for line in numerics})
    if len(steps) <= _STEPS:
        return numerics
    kept = {steps[-1 - index * len(steps) // _STEPS] for index in range(_STEPS)}
    return [line for line in numerics if line.get("step", 0) in kept]


class _Strings:
    """Each text once: stages repeat most of their lines, shapes and layers."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._places: dict[str, int] = {}

    def one(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.known)
            self.known.append(text)
        return self._places[text]

    def all(self, texts: list[str]) -> list[int]:
        return [self.one(text) for text in texts]


def _stage(stage: Mapping[str, Any], dumped: Dumped, bands: Bands, strings: _Strings) -> dict[str, Any]:
    """A stage in columns, its nodes in order and named by their place in it."""
    nodes = stage["nodes"]
    place = {node["name"]: index for index, node in enumerate(nodes)}
    inputs = [[place[name] for name in node["inputs"]] for node in nodes]
    layout = lay_out(inputs, [node.get("backward", False) for node in nodes], bands.of(nodes))
    code = dumped.code.get(stage["name"], [])
    return {
        "name": stage["name"],
        "kind": stage["kind"],
        "after": stage["after"],
        "names": [node["name"] for node in nodes],
        "ops": [strings.one(node.get("op", "")) for node in nodes],
        "targets": strings.all([node["target"] for node in nodes]),
        "types": strings.all([node["type"] for node in nodes]),
        "layers": strings.all([node.get("parameter") or node.get("layer", "") for node in nodes]),
        "by": [strings.one(node.get("by", "")) for node in nodes],
        "backward": [int(node.get("backward", False)) for node in nodes],
        "source": [node.get("source", -1) for node in nodes],
        "sources": stage["sources"],
        "inputs": inputs,
        "outputs": [place[name] for name in stage["outputs"]],
        "serves": {place[name]: rows for name, rows in serves(stage).items()},
        "products": [place.get(name, -1) for name in stage["products"]],
        "x": layout.x,
        "row": layout.row,
        "bands": [[bands.labels[band] if bands.labels else "", *rows] for band, *rows in layout.bands],
        "code": strings.all(code),
        "fates": {},
    }


def _joined(files: Iterable[Any]) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
