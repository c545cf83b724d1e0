"""`explain`: what would become of each product of a model, and why not where not, before anything is trained."""

import contextlib
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sympy
import torch
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import fx, nn

from spectral_compile._torch import compiling_as_often_as_asked
from spectral_compile.backend import spectral
from spectral_compile.lowering.eager import NO_POST_GRAD
from spectral_compile.pipeline import observe
from spectral_compile.plan import GemmPlan, Plan, RouterPlan, WeightPlan, routers_table, weights_table
from spectral_compile.report.kernels import kernels
from spectral_compile.report.python_code import plain_copy
from spectral_compile.report.sizes import (
    Size,
    flops,
    number,
    readable,
    saved,
    saved_by_products,
    saved_unchanged,
    user_outputs,
)

WIDTH = 170  # of the printed table


@dataclass(frozen=True)
class Explained:
    """One product. flops: 2 m n k, a number or symbolic; None for what is no product of two matrices. saved: bytes kept
    from forward to backward for it alone or for it among others, 0 for a forward product. kernels: the operators that
    prepare its two operands and the one that multiplies, on this machine; empty for one that is left alone.
    """

    plan: GemmPlan
    flops: Size | None
    saved: Size
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExplainedGraph:
    """One compiled graph. saved: bytes that its forward keeps for its backward; saved_unchanged: as many as it would
    keep without any pass. Both are 0 where there is no backward. weights: under `WeightSmoothing`, which are smoothed;
    routers: under `HeadwiseRouter`, which are split.
    """

    products: tuple[Explained, ...]
    saved: Size
    saved_unchanged: Size
    weights: tuple[WeightPlan, ...] = ()
    routers: tuple[RouterPlan, ...] = ()

    def flops(self, quantized: bool | None = None) -> Size:
        """Of all products, or of those that are (or are not) in four bits."""
        asked = (p for p in self.products if quantized in (None, p.plan.quantized))
        return sum((p.flops for p in asked if p.flops is not None), start=sympy.Integer(0))


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: printed, a table a graph; or read. notes: what a user should know beside the tables."""

    graphs: tuple[ExplainedGraph, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready data; symbolic sizes as text."""
        return {
            "graphs": [
                {
                    "products": [
                        {
                            **product.plan.as_dict(),
                            "flops": _plain(product.flops),
                            "saved": _plain(product.saved),
                            "kernels": list(product.kernels),
                        }
                        for product in graph.products
                    ],
                    "saved": _plain(graph.saved),
                    "saved_unchanged": _plain(graph.saved_unchanged),
                    "weights": [asdict(weight) for weight in graph.weights],
                    "routers": [asdict(router) for router in graph.routers],
                }
                for graph in self.graphs
            ],
            "notes": list(self.notes),
        }

    def __rich__(self) -> Group:
        tables: list[Table] = []
        for place, graph in enumerate(self.graphs, 1):
            tables.append(_table(graph, place, len(self.graphs)))
            tables += [weights_table(graph.weights)] if graph.weights else []
            tables += [routers_table(graph.routers)] if graph.routers else []
        return Group(*tables, *(Text(f"note: {note}") for note in self.notes))

    def __str__(self) -> str:
        console = Console(width=WIDTH)
        with console.capture() as printed:
            console.print(self)
        return printed.get()


def explain(
    model: Callable[..., Any], *inputs: Any, options: Mapping[str, Any] | None = None, **named: Any
) -> Explanation:
    """Say what `torch.compile(model, backend="spectral", options=options)` would do to each matrix product.

    model: a module, or a function such as a training step's forward. It is called once with these inputs, in its own
    precision; what that changes in its buffers and in torch's random state is undone, and nothing is trained. Call it
    under the same `torch.autocast` and `torch.no_grad` as in earnest. Raises ValueError for bad options.
    """
    target = getattr(model, "_orig_mod", model)
    seen = _Seen()

    def look(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        spectral(gm, example_inputs, options={**(options or {}), "codegen": "eager", "inductor": {}, "numerics": None})
        return gm.forward

    stop = observe(seen)
    try:
        with _left_as_it_was(target), compiling_as_often_as_asked(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NO_POST_GRAD)  # they will run in earnest
            torch.compile(_as_another_function(target), backend=look)(*inputs, **named)
    finally:
        stop()
    return Explanation(tuple(seen.graphs()), tuple(_notes(target, seen)))


def _as_another_function(target: Callable[..., Any]) -> Callable[..., Any]:
    """The target with code of its own: Dynamo keeps what it compiles with a function's code, where there is only so
    much room, and training will need it.
    """
    method: Any = target.forward if isinstance(target, nn.Module) else target
    function = getattr(method, "__func__", method)
    if not isinstance(function, types.FunctionType) or function.__module__.startswith("torch."):

        def explained(*spectral_arguments: Any, **spectral_named: Any) -> Any:
            return target(*spectral_arguments, **spectral_named)

        return explained
    twin = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return types.MethodType(twin, method.__self__) if function is not method else twin


class _Seen:
    """Observes compiles: for each, its plan, its joint graph before any pass and the size of what is saved."""

    def __init__(self) -> None:
        self.before: list[fx.Graph] = []
        self.roots: list[nn.Module] = []
        self.plans: list[Plan] = []
        self.forwards: list[fx.Graph | None] = []
        self.joints: list[fx.Graph] = []
        self.kernels: list[dict[str, tuple[str, ...]]] = []

    def __call__(self, stage: str, graph: fx.Graph, plan: Plan) -> None:
        if stage == "joint":
            self.before.append(plain_copy(graph))
            self.roots.append(graph.owning_module or nn.Module())
            self.plans.append(plan)
            self.forwards.append(None)
            self.joints.append(graph)
            self.kernels.append({})
        elif stage in ("forward", "backward", "inference"):
            self.plans[-1] = plan
            self.kernels[-1].update(kernels(graph))
            if stage == "forward":
                self.forwards[-1] = graph
        else:
            self.joints[-1] = graph

    def graphs(self) -> Iterator[ExplainedGraph]:
        seen = zip(self.before, self.roots, self.plans, self.forwards, self.joints, self.kernels, strict=True)
        for before, root, plan, forward, joint, kernels_of in seen:
            products = plan.products or [""] * len(plan.rows)
            kept = {} if forward is None else saved(forward)
            by_product = saved_by_products(joint, products, kept)
            rows = (
                Explained(
                    *(row, flops(row.m, row.n, row.k), sympy.Integer(0) if row.role == "fprop" else size),
                    kernels_of.get(product, ()),
                )
                for row, size, product in zip(plan.rows, by_product, products, strict=True)
            )
            unchanged = sympy.Integer(0) if forward is None else saved_unchanged(before, root, user_outputs(forward))
            kept_bytes = sum(kept.values(), start=sympy.Integer(0))
            yield ExplainedGraph(tuple(rows), kept_bytes, unchanged, plan.weights, plan.routers)


@contextlib.contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """Buffers, random state and a compiled call of the module itself, put back afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if isinstance(model, nn.Module) else []
    own_call = getattr(model, "_compiled_call_impl", None)
    if own_call is not None:
        model._compiled_call_impl = None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            if own_call is not None:
                model._compiled_call_impl = own_call
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _notes(model: Any, seen: _Seen) -> Iterator[str]:
    if not seen.plans:
        yield (
            "nothing that multiplies weights was compiled, or no pass is left to run: look at options, at"
            " SPECTRAL_DISABLE, and at whether the model is called with the inputs that it trains on"
        )
    if len(seen.plans) > 1:
        yield f"{len(seen.plans)} graphs, not one: the model's code breaks it, and they share no quantisation"
    if isinstance(model, nn.Module) and type(model).__module__.startswith("torch.nn."):
        yield (
            f"{type(model).__name__} is torch's own class, on which model.compile(backend=...) has no effect: use"
            " torch.compile(model, backend=...)"
        )


def _plain(size: Size | None) -> int | str | None:
    return None if size is None else number(size)


def _table(graph: ExplainedGraph, number: int, count: int) -> Table:
    plans = Plan(tuple(product.plan for product in graph.products))
    which = f"graph {number} of {count}: " if count > 1 else ""
    share = sympy.simplify(graph.flops(quantized=True) / graph.flops()) if graph.flops() != 0 else sympy.Integer(0)
    four_bits = f", {float(share):.0%} of the work" if share.is_number else ""
    table = Table(
        title=f"{which}{len(plans.quantized)} of {len(plans.rows)} products in four bits{four_bits}",
        caption=f"saved for backward: {readable(graph.saved)}; without any pass {readable(graph.saved_unchanged)}",
    )
    for heading in ("layer", "role", "m x n x k", "decision", "kernels"):
        table.add_column(heading)
    for heading in ("saved", "GFLOP"):
        table.add_column(heading, justify="right")
    for product in graph.products:
        row = product.plan
        flops = "" if product.flops is None else _giga(product.flops)
        cells = (*row.cells(), "; ".join(product.kernels), "" if product.saved == 0 else readable(product.saved), flops)
        table.add_row(*map(escape, cells))
    return table


def _giga(flops: Size) -> str:
    return f"{float(flops) / 1e9:.3g}" if flops.is_number else f"{flops / 10**9}"
