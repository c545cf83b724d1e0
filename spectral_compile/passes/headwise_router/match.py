"""Finding mixture-of-experts layers in a Dynamo graph, whole, or saying why one is left alone.

A layer is what lies between the features that router and experts read, `base`, and the one tensor through which
everything that follows from the router's choice reaches the rest of the graph, `output`:

    base -> linear -> logits -> gates: weights [T, k], indices [T, k] -> dispatch, experts' products -> output

It is cut out of the graph by who depends on whom, not by comparing it with a picture of one implementation; but every
operation in it must be a known one, and the chain of gates that of a known family.
"""

from dataclasses import dataclass, field

import torch
from torch import fx

from spectral_compile._torch import statically_known_true
from spectral_compile.graph.provenance import layer_path
from spectral_compile.passes.headwise_router.families import CASTS, GATES, LAYER, PRODUCTS, VIEWS, family
from spectral_compile.passes.headwise_router.flow import Flow, contexts, name_of, shape, value, works_in_place


class LayerError(ValueError):
    """Why a router is left alone."""


@dataclass(frozen=True)
class Found:
    """The nodes by which a layer is known: gates [T, k] as weights and indices, and the result."""

    weights: fx.Node
    indices: fx.Node
    output: fx.Node


@dataclass(eq=False)
class Router:
    """A layer, as described above. features: d. body: all between base and output, in order, the latter included.
    weight_of: for each product with experts' weights, the place of the weight among what it multiplies; down: those
    that no other follows. counted: nodes of the body that something outside reads without leading back to the output.
    reason: why it is left alone, then the rest may be missing; leaves: because its choice leaves the graph.
    """

    layer: str
    flow: Flow
    logits: fx.Node
    base: fx.Node
    features: int
    experts: int
    family: str = ""
    nodes: Found | None = None
    body: list[fx.Node] = field(default_factory=list)
    weight_of: dict[fx.Node, int] = field(default_factory=dict)
    down: set[fx.Node] = field(default_factory=set)
    counted: list[fx.Node] = field(default_factory=list)
    reason: str = ""
    leaves: bool = False

    @property
    def found(self) -> Found:
        """Of a layer that was matched."""
        assert self.nodes is not None
        return self.nodes

    @property
    def top_k(self) -> int:
        """How many experts a token goes to."""
        return int(shape(self.found.indices)[-1])

    @property
    def dispatch(self) -> str:
        """The product that multiplies by the experts' weights."""
        return " and ".join(sorted({name_of(node) for node in self.weight_of}))


def find_routers(graph: fx.Graph) -> list[Router]:
    """The routers of a graph in its order, each matched whole or with the `reason` for which it is left alone."""
    flow = Flow(graph)
    routers = (match_router(flow, node) for node in graph.nodes)
    return [router for router in routers if router is not None]


def match_router(flow: Flow, logits: fx.Node) -> Router | None:
    """The layer whose logits a node is; None where it is no router's linear."""
    if name_of(logits) != "linear" or not isinstance(logits.args[0], fx.Node) or not shape(logits):
        return None
    closure = _scores(flow, logits)
    ranked = [one for one in closure if name_of(one) == "topk"]
    router = _router(flow, logits)
    if not ranked:
        loosely = _scores(flow, logits, strictly=False)
        chosen = [user for node in loosely if name_of(node) == "topk" for user in node.users if _is_second(user)]
        if not any(name_of(node) in PRODUCTS or node.op == "output" for node in flow.after(chosen)):
            return None
        router.reason = _unknown_chain([name_of(node) for node in loosely])
        return router
    try:
        _match(router, closure, ranked)
    except LayerError as unknown:
        router.reason = str(unknown)
    return router if router.reason or router.family else None


def _router(flow: Flow, logits: fx.Node) -> Router:
    base = logits.args[0]
    assert isinstance(base, fx.Node)
    features = int(shape(base)[-1])
    while name_of(base) in CASTS | VIEWS and shape(_first(base))[-1:] == (features,):
        base = _first(base)
    weight = logits.args[1]
    layer = layer_path(logits) or str(weight).removesuffix("_weight")
    return Router(layer, flow, logits, base, features, int(shape(logits)[-1]))


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _scores(flow: Flow, logits: fx.Node, strictly: bool = True) -> list[fx.Node]:
    """What is computed from the logits, and from nothing else that was computed from the model's input: by known
    operations, or by any that gives a score for each expert.
    """
    found: list[fx.Node] = []
    known = {logits}
    for node in flow.sorted(flow.after([logits])):
        others = [one for one in node.all_input_nodes if one not in known]
        fed = [one for one in node.all_input_nodes if one in known]
        known_here = name_of(node) in GATES | CASTS | VIEWS or (not strictly and shape(node) == shape(logits))
        if fed and known_here and all(_is_constant(one) for one in others):
            known.add(node)
            found.append(node)
    return found


def _is_constant(node: fx.Node) -> bool:
    """A parameter, a buffer, or a number of the program's."""
    return node.op in ("placeholder", "get_attr") or not shape(node)


def _match(router: Router, closure: list[fx.Node], ranked: list[fx.Node]) -> None:
    """With whichever ranking it is that chooses experts: others choose groups, or count for a balance loss."""
    products = {node for node in router.flow.order if name_of(node) in PRODUCTS}
    choices = [user for node in reversed(ranked) for user in node.users if _is_second(user)]
    unknown: list[LayerError] = []
    for indices in choices:
        try:
            _match_choice(router, closure, indices, products)
        except LayerError as error:
            unknown.append(error)
        else:
            return
    after = [router.flow.after([indices]) for indices in choices]
    leading = [error for error, nodes in zip(unknown, after, strict=True) if nodes & products]
    if leading or (unknown and router.nodes is not None):
        raise (leading or unknown)[0]
    if any(one.op == "output" for nodes in after for one in nodes) and _is_returned(router.base):
        router.leaves = True
        raise LayerError("its experts are not in the graph that it is in: their form breaks the graph")
    router.family = ""  # ranked for something else than experts: no router


def _is_returned(base: fx.Node) -> bool:
    """Whether features leave the graph, as they must for experts that follow in another."""
    views = [user for user in base.users if name_of(user) in CASTS | VIEWS]
    return any(user.op == "output" for node in (base, *views) for user in node.users)


def _unknown_chain(names: list[str]) -> str:
    return f"a chain from logits to gates that is not known: {' '.join(name for name in names if name)}"


def _is_second(node: fx.Node) -> bool:
    return name_of(node) == "getitem" and bool(node.args[1] == 1)


def _match_choice(router: Router, closure: list[fx.Node], indices: fx.Node, products: set[fx.Node]) -> None:
    flow = router.flow
    weights = _weights(flow, closure, indices)
    gates = flow.sorted((flow.after([router.logits]) & flow.before([weights, indices])) - {router.logits})
    names = [name_of(node) for node in gates]
    router.family = family(names)
    if not router.family:
        raise LayerError(_unknown_chain(names))
    router.nodes = Found(weights, indices, _output(router, {weights, indices}, products))
    router.body = _body(router)
    _check_operations(router)
    context = contexts(router.logits.graph)
    if any(context[node] != context[router.found.output] for node in router.body if node.all_input_nodes):
        raise LayerError("autocast or no_grad begins or ends inside the layer, which its copies would not be under")
    _find_products(router)
    inside = {router.base, *router.body}
    to_logits = flow.before([router.logits])
    router.counted = [
        node
        for node in router.body
        if node is not router.found.output and node not in to_logits and set(flow.users[node]) - inside
    ]


def _weights(flow: Flow, closure: list[fx.Node], indices: fx.Node) -> fx.Node:
    like = [
        node
        for node in closure
        if shape(node) == shape(indices)
        and value(node).dtype.is_floating_point
        and name_of(node) != "scatter"
        and (node.users or works_in_place(node))
    ]
    last = [node for node in like if not any(other in like for other in flow.after([node]) - {node})]
    if len(last) != 1:
        raise LayerError(f"{len(last) or 'no'} tensors that could be the gates of {list(shape(indices))} choices")
    return last[0]


def _output(router: Router, chosen: set[fx.Node], products: set[fx.Node]) -> fx.Node:
    """The first node through which all that follows from weights and indices reaches the rest, as wide as the base."""
    flow = router.flow
    follows = flow.after(chosen)
    elements = value(router.base).numel()
    for node in flow.sorted(follows):
        size = shape(node)
        if not size or not statically_known_true(size[-1] == router.features):
            continue
        if not statically_known_true(value(node).numel() == elements) or not flow.before([node]) & products:
            continue
        if _is_only_way(flow, follows, node):
            return node
    raise LayerError("no single result of the experts through which the router's choice reaches the rest of the graph")


def _is_only_way(flow: Flow, chosen: set[fx.Node], output: fx.Node) -> bool:
    inside = chosen & flow.before([output])
    beyond = flow.after([output])
    ways = {user for node in inside if node is not output for user in flow.users[node] if user not in inside}
    return not flow.after(ways) & beyond


def _body(router: Router) -> list[fx.Node]:
    flow = router.flow
    body = (flow.after([router.base]) & flow.before([router.found.output])) - {router.base}
    # What starts from nothing and is then written to is of the layer: an output of zeros that experts add to.
    written = {node.args[0] for node in body if works_in_place(node)}
    into = {node.args[0] for node in body if name_of(node) in ("scatter_add", "index_add")}
    made = {node for node in (written | into) - body if isinstance(node, fx.Node) and not node.all_input_nodes}
    made |= {one for node in body for one in node.all_input_nodes if name_of(one) == "arange"}
    changed = {node for node in flow.order if works_in_place(node) and node.args[0] in body}
    return flow.sorted(body | made | changed)


def _check_operations(router: Router) -> None:
    for node in router.body:
        if node.op in ("placeholder", "get_attr"):
            raise LayerError(f"{node.name} is written to by the layer, and belongs to the model")
        if works_in_place(node) and node.args[0] is router.base:
            raise LayerError(f"{node.name} changes the features that the layer reads")
        if name_of(node) not in LAYER:
            raise LayerError(f"{name_of(node) or node.op} ({node.name}) in the layer, which this pass cannot cut")


def _find_products(router: Router) -> None:
    flow = router.flow
    # A weight that is picked by the indices is still a weight: what moves are features and gates.
    moving = flow.after([router.base, router.found.weights], but=router.found.indices)
    products = [node for node in router.body if name_of(node) in PRODUCTS and node is not router.logits]
    router.weight_of = {}  # not of a choice that was tried before
    for node in products:
        still = [
            place
            for place, one in enumerate(node.args[:2] if name_of(node) != "einsum" else _operands(node))
            if isinstance(one, fx.Node) and one not in moving and len(shape(one)) >= 2
        ]
        if len(still) == 1:
            router.weight_of[node] = still[0]
    router.down = {node for node in router.weight_of if not (flow.after([node]) - {node}) & set(router.weight_of)}
    if len(router.weight_of) == len(router.down):
        raise LayerError("experts of one product: there is nothing between an up- and a down-projection")
    if any(not isinstance(value(node), torch.Tensor) for node in router.weight_of):
        raise LayerError("a product of the experts without a value")


def _operands(node: fx.Node) -> list[object]:
    """What an einsum multiplies."""
    given = node.args[1:]
    return list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
