"""The pass manager: the one object that Inductor calls on a joint graph, and what its cache key is made of."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx

from spectral_compile._torch import CustomGraphPass, GraphTransformObserver, cpu_multiplies_bf16, graph_input_index
from spectral_compile.config import Options
from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.graph.provenance import trace
from spectral_compile.graph.verify import holds_spectral_operators, verify
from spectral_compile.lowering.carriers import to_carriers
from spectral_compile.passes.hadamard import hadamard
from spectral_compile.passes.mean_center import mean_center
from spectral_compile.passes.quantize_fp4 import quantize_fp4
from spectral_compile.plan import Plan
from spectral_compile.planner import make_plan

Observer = Callable[[str, fx.Graph, Plan], None]
_observers: list[Observer] = []  # called with the stage's name and the graph, before the first pass and after each


class PassManager(CustomGraphPass):
    """Plans and rewrites one AOTAutograd graph, in place.

    Runs only when a compile misses the caches, and more than once on some graphs, so nothing may depend on its having
    run, and a graph that it has rewritten already is left alone.
    """

    def __init__(self, facts: GraphFacts, options: Options, seed_input: int | None) -> None:
        self.facts = facts
        self.options = options
        self.seed_input = seed_input

    def __call__(self, graph: fx.Graph) -> None:
        if holds_spectral_operators(graph):
            return
        provenance = trace(graph, self.facts)
        plan = make_plan(graph, provenance, self.options)
        rows = list(zip(plan.rows, provenance.gemms, strict=True))
        seed = self._seed(graph)
        emit = Emitter(graph)
        steps: tuple[tuple[str, Callable[[fx.Graph], None]], ...] = (
            ("mean_center", lambda _: mean_center(emit, rows, seed)),  # first: what is transformed is the residual
            ("hadamard", lambda _: hadamard(emit, rows)),
            ("quantize_fp4", lambda _: quantize_fp4(emit, rows, seed)),
        )
        _notify("joint", graph, plan)
        for name, step in steps:
            _apply(name, step, graph)
            graph.eliminate_dead_code()
            emit.forget_dead()
            verify(graph, after=name)
            _notify(name, graph, plan)

    def uuid(self) -> str:
        """All that the rewritten graph depends on, beside the graph itself, which Inductor adds."""
        parts = (
            source_digest(),
            self.options,
            self.options.resolved(),
            self.facts,
            self.seed_input,
            cpu_multiplies_bf16(),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _seed(self, graph: fx.Graph) -> fx.Node | None:
        if self.seed_input is None:
            return None
        inputs = graph.find_nodes(op="placeholder")
        return next((node for node in inputs if graph_input_index(node) == self.seed_input), None)


class CarrierPass(CustomGraphPass):
    """The last rewrite of each partitioned graph on a CPU: see `lowering.carriers`."""

    def __call__(self, graph: fx.Graph) -> None:
        _apply("to_carriers", to_carriers, graph)
        verify(graph, after="to_carriers")

    def uuid(self) -> str:
        """The graph, which Inductor adds, says the rest."""
        return source_digest()


@functools.cache
def source_digest() -> str:
    """A hash of this package's sources and torch's version: another version of either compiles afresh."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(__file__).parent
    for file in sorted((*package.rglob("*.py"), *package.rglob("*.cpp"), *package.rglob("*.h"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def observe(observer: Observer) -> Callable[[], None]:
    """Show `observer` every graph that is rewritten, before the first pass ("joint") and after each; returns what ends
    it. A compile that finds its code in Inductor's disk cache rewrites nothing: see `_torch.without_caches`.
    """
    _observers.append(observer)
    return lambda: _observers.remove(observer)


def _apply(name: str, step: Callable[[fx.Graph], None], graph: fx.Graph) -> None:
    """Run a pass under torch's observer: timing, `disabled_passes` by name and bisection come with it."""
    module = graph.owning_module
    assert module is not None
    GraphTransformObserver(module, f"spectral_{name}", subsystem="joint_graph_passes").apply_graph_pass(step)


def _notify(stage: str, graph: fx.Graph, plan: Any) -> None:
    for observer in tuple(_observers):
        observer(stage, graph, plan)
