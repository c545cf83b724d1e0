"""Dumps: a folder for each compiled graph, with what every pass made of it, as files to read, compare and run.

dynamo.py              the program as traced; dynamo_1_mine.py, dynamo_1_mine.diff after a pass on it
joint_0_before.py      forward and backward together, and after each pass that changed it:
joint_1_mean_center.py, joint_1_mean_center.diff ...
forward.py, backward.py        apart, as Inductor gets them
plan.json, plan.txt    what was decided for each product
memory.json            bytes saved for backward, with the passes and without
timings.json           seconds that each pass took
provenance.graphml     which product reads which tensor, and belongs to which forward product
graphs.jsonl, about.json       the graphs as data, and what was compiled: for the report
report.html            all of it, to look at in a browser
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import sympy
import torch
from rich.console import Console
from torch import fx, nn

from spectral_compile._torch import replacements, returned_by_forward, root_frame_modules, trace_artifact
from spectral_compile.errors import harmless
from spectral_compile.graph.provenance import Provenance
from spectral_compile.graph.verify import holds_spectral_operators
from spectral_compile.plan import Plan
from spectral_compile.report import page, sizes
from spectral_compile.report.folder import ABOUT, GRAPHS, MEMORY
from spectral_compile.report.python_code import plain_copy, python_file
from spectral_compile.report.rewrites import Rewrites, marked
from spectral_compile.report.stages import stage as as_data


class Dump:
    """Writes one graph's folder, `directory`/000 or the next number that is free."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.folder = _next_folder(directory)
        self.seconds: dict[str, float] = {}
        self.rewrites = Rewrites("joint", "joint_0_before.py", "Forward and backward")
        self.last_joint: fx.Graph | None = None  # the joint graph, until its backward was looked at
        self.products: Sequence[str] = ()
        self.parameters: dict[str, str] = {}  # the user's name of each input that is one
        self.replaced: dict[str, tuple[str, str]] = {}  # since the last stage: what is in a node's place, by which pass
        self.memory: dict[str, Any] = {}

    @harmless("a dump")
    def begin(self, traced: "Traced", options: Any) -> None:
        """What is compiled, and how; and the program as traced."""
        for name, text in traced.files.items():
            self._write(name, text)
        for name, seconds in traced.seconds.items():
            self.timing(name, seconds)
        models = [type(module).__qualname__ for module in root_frame_modules().values()]
        said = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
        about = {
            "graph": self.folder.name,
            "model": models[0] if models else "",
            "options": {key: str(value) for key, value in said.items() if value not in ("", ()) and key != "dump"},
            "torch": torch.__version__,
            "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._write(ABOUT, json.dumps(about, indent=2) + "\n")

    @harmless("a dump")
    def joint(self, stage: str, graph: fx.Graph, products: Sequence[str]) -> None:
        """The joint graph before any pass, or after one; nothing is written where a pass changed nothing. products: the
        node that each row of the plan is now.
        """
        before_any = not self.rewrites.count
        files = self.rewrites.files(stage, graph)
        self.last_joint, self.products = graph, products
        if not files:
            return
        if before_any:
            self._saved_without(graph)
        for name, text in files.items():
            self._write(name, text)
        self._add_stage(self.rewrites.name, "joint", graph, "" if before_any else stage)

    @harmless("a dump")
    def rewritten(self) -> None:
        """After the last pass. A graph without a backward may have no parts to come."""
        if self.last_joint is not None and not any(map(_is_tangent, self.last_joint.nodes)):
            self.last_joint = None
            self.report()

    @harmless("a dump")
    def part(self, graph: fx.Graph) -> None:
        """The forward or the backward graph, on its way to Inductor."""
        inputs = graph.find_nodes(op="placeholder")
        backward = any(map(_is_tangent, inputs))
        kind = "backward" if backward else "forward"
        name = f"{kind}.py"
        self._write(name, python_file(graph, name, f"The {kind} graph, as Inductor gets it."))
        self._add_stage(name, kind, graph)
        if backward:
            self._saved_with(graph)
        self.report()

    @harmless("a dump")
    def plan(self, plan: Plan, provenance: Provenance) -> None:
        """What was decided, and how the products are related."""
        inputs = [node for node in provenance.origin if node.op == "placeholder"]
        names = {node.name: provenance.origin[node].parameters for node in inputs}
        self.parameters = {node: next(iter(found)) for node, found in names.items() if len(found) == 1}
        self._write("plan.json", json.dumps(plan.as_dict(), indent=2) + "\n")
        with (self.folder / "plan.txt").open("w", encoding="utf-8") as file:
            Console(file=file, width=150).print(plan)
        nx.write_graphml(_plain(provenance), self.folder / "provenance.graphml")

    @harmless("a dump")
    def timing(self, name: str, seconds: float) -> None:
        """How long a pass took."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self._write("timings.json", json.dumps(self.seconds, indent=2) + "\n")

    @harmless("report.html")
    def report(self) -> None:
        """The page that shows what is there by now: again with each part, for a backward may be compiled much later."""
        page.write(self.folder)

    def _add_stage(self, file: str, kind: str, graph: fx.Graph, after: str = "") -> None:
        name = file.removesuffix(".py")
        replaced, self.replaced = self.replaced, {}
        products = list(self.products)
        for place, product in enumerate(products):  # what passes after ours, and those on the parts, put in its place
            while product in replaced:
                product = products[place] = replaced[product][0]
        told = as_data(name, kind, graph, after=after, products=products, replaced=replaced, parameters=self.parameters)
        with (self.folder / GRAPHS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(told, separators=(",", ":")) + "\n")

    def _saved_without(self, joint: fx.Graph) -> None:
        """Partitioned as it is before any pass. Only a backward keeps anything."""
        if holds_spectral_operators(joint) or not any(map(_is_tangent, joint.nodes)):
            return
        with harmless(MEMORY):
            root = joint.owning_module or nn.Module()
            unchanged = sizes.saved_unchanged(plain_copy(joint), root, len(returned_by_forward(joint)))
            self.memory["saved_unchanged"] = sizes.number(unchanged)

    def _saved_with(self, backward: fx.Graph) -> None:
        joint, self.last_joint = self.last_joint, None
        if joint is None:
            return
        with harmless(MEMORY):
            kept = sizes.saved_for(backward, joint)
            by_product = sizes.saved_by_products(joint, self.products, kept)
            self.memory |= {
                "saved": sizes.number(sum(kept.values(), start=sympy.Integer(0))),
                "kept": [[name, sizes.number(size)] for name, size in kept.items()],
                "by_product": [sizes.number(size) for size in by_product],
            }
            self._write(MEMORY, json.dumps(self.memory, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
        trace_artifact(f"spectral_{self.folder.name}_{name}", text)


class Traced:
    """What will be dumped of a Dynamo graph, while it is not known yet whether there is anything to compile in it."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm
        self.rewrites = Rewrites("dynamo", "dynamo.py", "The program as Dynamo traced it")
        self.files: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._add("")

    @contextlib.contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """While pass `name` runs."""
        begin = time.perf_counter()
        with marked(name, [module.graph for module in self.gm.modules() if isinstance(module, fx.GraphModule)]):
            yield
        self.seconds[name] = time.perf_counter() - begin
        self._add(name)

    @harmless("a dump")
    def _add(self, stage: str) -> None:
        self.files |= self.rewrites.files(stage, self.gm.graph)


@contextlib.contextmanager
def watched(name: str, graph: fx.Graph, dump: Dump | None) -> Iterator[None]:
    """While pass `name` runs: how long it takes, and which nodes it makes. Without a dump nothing."""
    if dump is None:
        yield
        return
    begin = time.perf_counter()
    with replacements(graph) as replaced, marked(name, [graph]):
        yield
    dump.timing(name, time.perf_counter() - begin)
    dump.replaced.update({old: (new, name) for old, new in replaced.items()})


def _is_tangent(node: fx.Node) -> bool:
    return node.op == "placeholder" and node.name.startswith("tangents")


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


def _plain(provenance: Provenance) -> nx.DiGraph:
    """The provenance graph with text in place of objects."""
    plain = nx.DiGraph(provenance.graph)
    for name, attributes in provenance.graph.nodes(data=True):
        plain.add_node(name, **{key: str(value) for key, value in attributes.items()})
        plain.nodes[name].pop("gemm", None)
    return plain
