"""Dumps: a folder for each compiled graph, with what every pass made of it, as files to read, compare and run.

dynamo.py              the program as traced
joint_0_before.py      forward and backward together, and after each pass that changed it:
joint_1_mean_center.py, joint_1_mean_center.diff ...
forward.py, backward.py        apart, as Inductor gets them
plan.json, plan.txt    what was decided for each product
timings.json           seconds that each pass took
provenance.graphml     which product reads which tensor, and belongs to which forward product
"""

import contextlib
import difflib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
from rich.console import Console
from torch import fx

from spectral_compile._torch import trace_artifact
from spectral_compile.graph.provenance import Provenance
from spectral_compile.plan import Plan
from spectral_compile.report.python_code import MADE_BY, python_file


class Dump:
    """Writes one graph's folder, `directory`/000 or the next number that is free."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.folder = _next_folder(directory)
        self.seconds: dict[str, float] = {}
        self.last: tuple[str, str] = ("", "")  # name and text of the joint graph, as last written
        self.count = 0

    def dynamo(self, graph: fx.Graph) -> None:
        """The program as traced. (Not to be run alone: it reads what Dynamo read.)"""
        self._write("dynamo.py", str(graph.python_code("self").src).lstrip())

    def joint(self, stage: str, graph: fx.Graph) -> None:
        """The joint graph before any pass, or after one; nothing is written where a pass changed nothing."""
        name = f"joint_{self.count}_{stage}.py"
        when = f"after {stage}" if self.count else "before any pass"
        text = python_file(graph, name, f"Forward and backward, {when}.")
        body = _body(text)
        before, previous = self.last
        if body == previous:
            return
        self._write(name, text)
        if before:
            lines = difflib.unified_diff(previous.splitlines(), body.splitlines(), before, name, lineterm="", n=2)
            self._write(name.replace(".py", ".diff"), "\n".join(lines) + "\n")
        self.last = (name, body)
        self.count += 1

    def part(self, graph: fx.Graph) -> None:
        """The forward or the backward graph, on its way to Inductor."""
        inputs = graph.find_nodes(op="placeholder")
        backward = any(node.name.startswith("tangents") for node in inputs)
        name = "backward.py" if backward else "forward.py"
        self._write(name, python_file(graph, name, f"The {name.removesuffix('.py')} graph, as Inductor gets it."))

    def plan(self, plan: Plan, provenance: Provenance) -> None:
        """What was decided, and how the products are related."""
        self._write("plan.json", json.dumps(plan.as_dict(), indent=2) + "\n")
        with (self.folder / "plan.txt").open("w", encoding="utf-8") as file:
            Console(file=file, width=150).print(plan)
        nx.write_graphml(_plain(provenance), self.folder / "provenance.graphml")

    def timing(self, name: str, seconds: float) -> None:
        """How long a pass took."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._write("timings.json", json.dumps(self.seconds, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
        trace_artifact(f"spectral_{self.folder.name}_{name}", text)


@contextlib.contextmanager
def watched(name: str, graph: fx.Graph, dump: Dump | None) -> Iterator[None]:
    """While pass `name` runs: how long it takes, and which nodes it makes. Without a dump nothing."""
    if dump is None:
        yield
        return
    before, begin = set(graph.nodes), time.perf_counter()
    yield
    dump.timing(name, time.perf_counter() - begin)
    for node in graph.nodes:
        if node not in before:
            node.meta[MADE_BY] = name


def _next_folder(directory: Path) -> Path:
    number = 0
    while True:
        folder = directory / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:  # of an earlier graph, run or process
            number += 1
        else:
            return folder


def _body(text: str) -> str:
    """Without the title, which differs in every file."""
    return text.partition("import torch\n")[2]


def _plain(provenance: Provenance) -> nx.DiGraph:
    """The provenance graph with text in place of objects."""
    plain = nx.DiGraph(provenance.graph)
    for name, attributes in provenance.graph.nodes(data=True):
        plain.add_node(name, **{key: str(value) for key, value in attributes.items()})
        plain.nodes[name].pop("gemm", None)
    return plain
