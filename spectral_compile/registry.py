"""Passes by name: ours, and those that users register; in which order they run, and what a cache must know of them."""

import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, overload

import networkx as nx
from torch import fx

from spectral_compile.validation import check_name

Stage = Literal["dynamo", "joint", "post_grad"]
UserPass = Callable[[fx.Graph, Any], None]
_Function = TypeVar("_Function", bound=UserPass)

# Ours, in order: what is transformed is the residual, and what is quantised is what was transformed.
JOINT = ("mean_center", "hadamard", "quantize_fp4", "numerics")
DYNAMO = ("weight_smoothing", "headwise_router")  # the first decides, and leaves the graph as it is
POST_GRAD = ("to_carriers", "pair_quantizers", "plan_memory")  # the second on GPUs, the others on CPUs
OURS: dict[Stage, tuple[str, ...]] = {"dynamo": DYNAMO, "joint": JOINT, "post_grad": POST_GRAD}


@dataclass(frozen=True)
class Registered:
    """A user's pass. `identity` changes when its code or its version does."""

    name: str
    stage: Stage
    before: tuple[str, ...]
    after: tuple[str, ...]
    identity: str
    function: UserPass


_registered: dict[str, Registered] = {}


@overload
def register_pass(function: _Function, /) -> _Function: ...


@overload
def register_pass(
    function: None = None,
    /,
    *,
    stage: Stage = "joint",
    name: str | None = None,
    before: str | Iterable[str] = (),
    after: str | Iterable[str] = (),
    version: object = None,
) -> Callable[[_Function], _Function]: ...


def register_pass(
    function: Any = None,
    /,
    *,
    stage: Stage = "joint",
    name: str | None = None,
    before: str | Iterable[str] = (),
    after: str | Iterable[str] = (),
    version: object = None,
) -> Any:
    """Decorator, bare or with settings: run `function(graph, options)` in every graph that this backend rewrites; in
    stage "dynamo" in every graph that it is given, and in those of checkpointed regions.

    The function changes a `torch.fx.Graph` in place; options are `spectral_compile.config.Options`.

    stage: "dynamo", the user's program as traced, before autograd; "joint", forward and backward in ATen operators,
    where our own passes mean_center, hadamard, quantize_fp4 and numerics run; or "post_grad", forward and backward
    apart, on the way to Inductor. name: the function's own by default; registering a name again replaces the pass.
    before, after: names of passes of the same stage; without them a pass comes last.

    Compiled code is found again by the function's source. version: anything whose repr changes with what the source
    alone does not show, such as a constant elsewhere; needed where there is no source. Raises ValueError for a stage
    that is none, an order that cannot be, or a name of ours.
    """
    if function is not None and not callable(function):
        raise ValueError(f"a pass is a function of a graph and options, not {function!r}")
    check_name("stage", stage, get_args(Stage))

    def register(function: _Function) -> _Function:
        called = name or function.__name__
        if any(called in ours for ours in OURS.values()):
            raise ValueError(f"{called!r} is a pass of this library: give yours another name")
        new = Registered(called, stage, _names(before), _names(after), _identity(called, function, version), function)
        previous = _registered.get(called)
        _registered[called] = new
        try:
            _order(stage, missing_allowed=True)
        except ValueError:
            unregister_pass(called)
            if previous is not None:
                _registered[called] = previous
            raise
        return function

    return register if function is None else register(function)


def unregister_pass(name: str) -> None:
    """Forget a pass that `register_pass` registered. Raises ValueError where there is none of this name."""
    check_name("registered pass", name, _registered)
    del _registered[name]


def pass_names(stage: Stage | None = None) -> list[str]:
    """The passes of a stage in the order in which they run; of all stages where none is given.

    Raises ValueError for a pass that is to run before or after one that there is not.
    """
    stages = [stage] if stage is not None else get_args(Stage)
    return [name for each in stages for name in _order(each)]


def registered(stage: Stage, name: str) -> UserPass | None:
    """A user's pass; None where the name is one of ours."""
    return None if name in OURS[stage] else _registered[name].function


def has_registered(stage: Stage | None = None) -> bool:
    """Whether users have passes, in one stage or any."""
    return any(stage in (None, entry.stage) for entry in _registered.values())


def digest() -> str:
    """Changes when any registered pass, or their order, does."""
    entries = [(e.name, e.stage, e.before, e.after, e.identity) for e in _registered.values()]
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def _order(stage: Stage, missing_allowed: bool = False) -> list[str]:
    """By a graph of which pass runs before which; passes that may run in either order, as they were registered."""
    own = [entry for entry in _registered.values() if entry.stage == stage]
    names = [*OURS[stage], *(entry.name for entry in own)]
    graph = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(zip(OURS[stage], OURS[stage][1:], strict=False))
    for entry in own:
        for others, edge in ((entry.before, lambda a, b: (a, b)), (entry.after, lambda a, b: (b, a))):
            for other in others:
                if other in names:
                    graph.add_edge(*edge(entry.name, other))
                elif not missing_allowed:
                    _refuse_missing(entry, other, names)
        if not entry.before and not entry.after:
            graph.add_edges_from((ours, entry.name) for ours in OURS[stage])
    try:
        return list(nx.lexicographical_topological_sort(graph, key=names.index))
    except nx.NetworkXUnfeasible:
        edges = nx.find_cycle(graph)
        cycle = " before ".join([edges[0][0], *(b for _, b, *_ in edges)])
        raise ValueError(f"{stage} passes cannot be ordered: {cycle}") from None


def _refuse_missing(entry: Registered, other: str, names: list[str]) -> None:
    elsewhere = _registered.get(other)
    stage = elsewhere.stage if elsewhere else next((s for s, ours in OURS.items() if other in ours), None)
    if stage is not None:
        raise ValueError(f"pass {entry.name!r} is of stage {entry.stage!r}, and {other!r} of stage {stage!r}")
    try:
        check_name(f"{entry.stage} pass", other, [name for name in names if name != entry.name])
    except ValueError as error:
        raise ValueError(f"pass {entry.name!r} is to run before or after an {error}") from None


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _identity(name: str, function: UserPass, version: object) -> str:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        if version is None:
            raise ValueError(
                f"pass {name!r} has no source to tell its versions apart by: give register_pass a version=..."
            ) from None
        source = ""
    return hashlib.sha256(f"{source}{version!r}".encode()).hexdigest()
