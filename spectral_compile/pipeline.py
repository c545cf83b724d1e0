"""The pass manager: the one object that Inductor calls on a joint graph, and what its cache key is made of."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from spectral_compile import registry
from spectral_compile._torch import (
    CustomGraphPass,
    GraphTransformObserver,
    compile_fx_inner,
    cpu_multiplies_bf16,
    graph_input_index,
)
from spectral_compile.config import Options
from spectral_compile.errors import SpectralRuntimeError
from spectral_compile.graph.emit import PRODUCT, Emitter
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.graph.provenance import trace
from spectral_compile.graph.verify import holds_spectral_operators, verify, without_value
from spectral_compile.lowering.carrier import capabilities
from spectral_compile.lowering.carriers import to_carriers
from spectral_compile.lowering.planned import plan_memory
from spectral_compile.lowering.triton.pairs import pair_quantizers
from spectral_compile.passes.hadamard import hadamard
from spectral_compile.passes.mean_center import mean_center
from spectral_compile.passes.numerics import numerics
from spectral_compile.passes.quantize_fp4 import quantize_fp4
from spectral_compile.plan import Plan, RouterPlan, WeightPlan
from spectral_compile.planner import make_plan
from spectral_compile.recipes import Numerics, WeightSmoothing
from spectral_compile.registry import Stage
from spectral_compile.report.dump import Dump, watched
from spectral_compile.scopes import Scopes, without

Step = Callable[[fx.Graph], None]
SEED, STEP = "spectral_seed", "spectral_step"  # inputs that backend.py adds: of stochastic rounding, of measuring
Observer = Callable[[str, fx.Graph, Plan], None]
_observers: list[Observer] = []  # called with the stage's name and the graph, before the first pass and after each


class PassManager(CustomGraphPass):
    """Plans and rewrites one AOTAutograd graph, in place.

    Runs only when a compile misses the caches, and more than once on some graphs, so nothing may depend on its having
    run, and a graph that it has rewritten already is left alone.
    """

    def __init__(
        self,
        facts: GraphFacts,
        scopes: Scopes,
        inputs: Mapping[str, int] | None = None,
        dump: Dump | None = None,
        weights: Sequence[WeightPlan] = (),
        routers: Sequence[RouterPlan] = (),
    ) -> None:
        """inputs: which inputs of the graph are `backend`'s own, SEED and STEP. weights, routers: for the plan only."""
        self.facts = facts
        self.scopes = scopes
        self.inputs = dict(inputs or {})
        self.dump = dump
        self.decided = {"weights": tuple(weights), "routers": tuple(routers)}
        self.plan: Plan | None = None  # of the graph that was rewritten last

    def __call__(self, graph: fx.Graph) -> None:
        if holds_spectral_operators(graph):
            return
        provenance = trace(graph, self.facts)
        plan = self.plan = replace(make_plan(graph, provenance, self.scopes), **self.decided)  # type: ignore[arg-type]
        rows = list(zip(plan.rows, provenance.gemms, strict=True))
        for row, gemm in rows:
            gemm.node.meta[PRODUCT] = f"{row.role} of {row.layer or 'the root module'}"
        seed, measured = self._input(graph, SEED), self._input(graph, STEP)
        emit = Emitter(graph)
        ours: dict[str, Step] = {
            "mean_center": lambda _: mean_center(emit, rows, seed),
            "hadamard": lambda _: hadamard(emit, rows),
            "quantize_fp4": lambda _: quantize_fp4(emit, rows, seed),
        }
        if asked := self.scopes.base.numerics:
            ours["numerics"] = lambda _: numerics(emit, rows, measured, asked.cosine)
        notify("joint", graph, plan)
        if self.dump is not None:
            self.dump.plan(plan, provenance)
            self.dump.joint("before", graph, [row.node for row in plan.rows])
        for name, step in steps("joint", self.scopes.base, ours):
            with watched(name, graph, self.dump):
                _apply(name, step, graph)
                graph.eliminate_dead_code()
            emit.forget_dead()
            verify(graph, after=name)
            notify(name, graph, plan)
            if self.dump is not None:
                self.dump.joint(name, graph, [gemm.node.name for _, gemm in rows])
        self.plan = replace(plan, products=tuple(gemm.node.name for _, gemm in rows))
        if self.dump is not None:
            self.dump.rewritten()

    def uuid(self) -> str:
        """All that the rewritten graph depends on, beside the graph itself, which Inductor adds."""
        asked = self.scopes.base.numerics  # where measurements go, and how often they are made, is in no graph
        scopes = self.scopes
        if not (
            registry.has_registered("joint") or registry.has_registered("post_grad")
        ):  # a user's pass may read any setting
            scopes = without(WeightSmoothing, scopes)  # acts as the optimizer steps, and is in no graph either
        base = replace(scopes.base, numerics=asked and Numerics(cosine=asked.cosine))
        parts = (
            source_digest(),
            registry.digest(),
            replace(scopes, base=base, all_options=()),
            [options.resolved() for options in scopes.all_options],
            self.facts,
            self.inputs,
            cpu_multiplies_bf16(),
            capabilities(),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _input(self, graph: fx.Graph, name: str) -> fx.Node | None:
        if name not in self.inputs:
            return None
        inputs = graph.find_nodes(op="placeholder")
        return next((node for node in inputs if graph_input_index(node) == self.inputs[name]), None)


class PostGradPasses:
    """What compiles each partitioned graph: our last passes for the device, and users'; then Inductor.

    Inductor has a hook for such passes as well; but what runs there makes it compute the value of every node behind a
    new one afresh, which costs more than the passes. `PassManager.uuid` covers what these depend on.
    """

    def __init__(self, options: Options, device: str, dump: Dump | None = None) -> None:
        self.dump = dump
        ours: dict[str, Step] = {}
        if device == "cpu":
            ours = {"to_carriers": to_carriers, "plan_memory": plan_memory}
        elif device == "cuda":
            ours = {"pair_quantizers": pair_quantizers}
        self.steps = list(steps("post_grad", options, ours))  # now: a backward may be compiled much later

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **how: Any) -> Any:
        """As `torch._inductor.compile_fx.compile_fx_inner`."""
        self._rewrite(gm.graph)
        gm.recompile()  # Inductor's cache reads the code
        return compile_fx_inner(gm, example_inputs, **how)

    def _rewrite(self, graph: fx.Graph) -> None:
        for name, step in self.steps:
            known = without_value(graph)
            with watched(name, graph, self.dump):
                _apply(name, step, graph)
            verify(graph, after=name, known=known)
        if self.dump is not None:
            self.dump.part(graph)


def steps(stage: Stage, options: Options, ours: Mapping[str, Step]) -> Iterator[tuple[str, Step]]:
    """The passes of a stage in order, ours and users', less those that are disabled or not for this device."""
    for name in registry.pass_names(stage):
        users = registry.registered(stage, name)
        if not options.runs(name) or (users is None and name not in ours):
            continue
        yield name, ours[name] if users is None else functools.partial(_run, name, users, options)


def _run(name: str, function: registry.UserPass, options: Options, graph: fx.Graph) -> None:
    """A user's pass: what goes wrong in it names it."""
    try:
        function(graph, options)
    except Exception as error:
        raise SpectralRuntimeError(f"pass {name!r} failed: {type(error).__name__}: {error}") from error


@functools.cache
def source_digest() -> str:
    """A hash of this package's sources and torch's version: another version of either compiles afresh."""
    digest = hashlib.sha256(torch.__version__.encode())
    package = Path(__file__).parent
    for file in sorted((*package.rglob("*.py"), *package.rglob("*.cpp"), *package.rglob("*.h"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def observe(observer: Observer) -> Callable[[], None]:
    """Show `observer` every graph that is rewritten, before the first pass ("joint") and after each; with codegen
    "eager" also both parts of a training graph ("forward", "backward"), or one without a backward ("inference").
    Returns what ends it.

    A compile that finds its code in Inductor's disk cache rewrites nothing: see `_torch.without_caches`.
    """
    _observers.append(observer)
    return lambda: _observers.remove(observer)


def _apply(name: str, step: Callable[[fx.Graph], None], graph: fx.Graph) -> None:
    """Run a pass under torch's observer: timing, `disabled_passes` by name and bisection come with it."""
    module = graph.owning_module
    assert module is not None
    GraphTransformObserver(module, f"spectral_{name}", subsystem="joint_graph_passes").apply_graph_pass(step)


def notify(stage: str, graph: fx.Graph, plan: Plan) -> None:
    """Show a graph to whoever observes."""
    for observer in tuple(_observers):
        observer(stage, graph, plan)
