"""Which product of a joint graph is fprop, dgrad or wgrad, and of which layer.

The answer is a networkx graph: its nodes are products and the tensors they read; its edges lead from a tensor to each
product that reads it and from an fprop to its dgrad and wgrad. So "which GEMMs share this activation" is a look at the
activation's successors.
"""

from dataclasses import dataclass, field
from typing import Literal

import networkx as nx
import torch
from torch import fx

from spectral_compile.graph import experts
from spectral_compile.graph.dataflow import Origin, origins, root
from spectral_compile.graph.experts import Grouped
from spectral_compile.graph.facts import GraphFacts, module_stack

aten = torch.ops.aten

Role = Literal["fprop", "dgrad", "wgrad", "other"]
MATRIX_PRODUCTS = (aten.mm.default, aten.addmm.default)
ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention")

ATTENTION_NOTE = "attention product: both operands are activations"
WEIGHTS_ALONE = "weight arithmetic: no activation flows in"
NO_WEIGHT = "neither operand is computed from parameters alone (a buffer, say a mask on a weight, is data)"
NO_ACTIVATION = "no operand is an activation"
NO_FORWARD = "backward product whose forward was not found"


@dataclass(eq=False)
class Gemm:
    """One product. For `mm` and `addmm`, a @ b + addend; role "other" comes with the reason in `note`.

    grouped: of a product with a stack of weights, its form, of which a and b are operands.
    """

    node: fx.Node
    role: Role
    layer: str
    a: fx.Node | None = None
    b: fx.Node | None = None
    addend: fx.Node | None = None
    note: str = ""
    weight_names: frozenset[str] = frozenset()
    forward: "Gemm | None" = None
    backward: list["Gemm"] = field(default_factory=list)
    weight_is_b: bool = True  # fprop and dgrad: which operand is the weight
    gradient_is_a: bool = True  # wgrad: which operand is the gradient
    grouped: Grouped | None = None
    transformed: bool = False  # grouped: the quantisers are to apply the Hadamard transform

    def like(self, kind: str) -> fx.Node:
        """The node whose metadata the work on an operand inherits: what is computed from forward values belongs to the
        forward, even where only a wgrad reads it.
        """
        return self.node if kind == "gradient" or self.forward is None else self.forward.node


@dataclass
class Provenance:
    """gemms in graph order; `graph` as described above; `origin` of every node."""

    gemms: list[Gemm]
    graph: nx.DiGraph
    origin: dict[fx.Node, Origin]


def trace(graph: fx.Graph, facts: GraphFacts) -> Provenance:
    """Find and relate every product of an AOTAutograd graph, joint or inference."""
    names = {i: name for i, name in enumerate(facts.inputs) if name is not None}
    origin = origins(graph, names)
    gemms: list[Gemm] = []
    forward_of: dict[int, list[Gemm]] = {}  # by seq_nr, which a backward product shares with its forward
    for node in graph.nodes:
        backward = _in_backward(node) or origin[node].gradient  # an autograd.Function's own backward has no tag
        candidates = forward_of.get(node.meta.get("seq_nr", -1), [])
        if node.target in MATRIX_PRODUCTS:
            gemm = _backward(node, candidates) if backward else _forward(node, origin)
        elif experts.is_product(node):
            gemm = _grouped_backward(node, candidates, origin) if backward else _grouped_forward(node, origin, facts)
        elif any(part in str(node.target) for part in ATTENTION):
            gemm = Gemm(node, "other", layer_path(node), note=ATTENTION_NOTE)
        else:
            continue
        if not backward and "seq_nr" in node.meta:
            forward_of.setdefault(node.meta["seq_nr"], []).append(gemm)
        gemms.append(gemm)
    return Provenance(gemms, _as_graph(gemms), origin)


def layer_path(node: fx.Node) -> str:
    """The path of the innermost module a node came from; "" where there is none."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def _forward(node: fx.Node, origin: dict[fx.Node, Origin]) -> Gemm:
    addend, a, b = _operands(node)
    gemm = Gemm(node, "other", layer_path(node), a, b, addend)
    weight_a, weight_b = origin[a].is_weight, origin[b].is_weight
    if weight_a and weight_b:
        gemm.note = WEIGHTS_ALONE
    elif any(origin[x].product and origin[x].parameters and not origin[x].activation for x in (a, b)):
        gemm.note = "an operand is a product of parameters, as learned queries are: no weight of a linear"
    elif not weight_a and not weight_b:
        gemm.note = NO_WEIGHT
    elif not (origin[a].activation or origin[b].activation):
        gemm.note = NO_ACTIVATION
    else:
        gemm.role, gemm.weight_is_b = "fprop", weight_b
        gemm.weight_names = origin[b if weight_b else a].parameters
        gemm.layer = gemm.layer or min(gemm.weight_names).rpartition(".")[0]
    return gemm


def _backward(node: fx.Node, candidates: list[Gemm]) -> Gemm:
    """Match by seq_nr, then prove it by data flow: dgrad reads the forward's weight, wgrad its activation."""
    addend, a, b = _operands(node)
    gemm = Gemm(node, "other", layer_path(node), a, b, addend, note=NO_FORWARD)
    read = (root(a), root(b))
    for forward in candidates:
        if forward.a is None or forward.b is None:
            continue
        weight, activation = root(forward.b), root(forward.a)
        if not forward.weight_is_b:
            weight, activation = activation, weight
        if weight not in read and activation not in read:
            continue
        if forward.role != "fprop":
            gemm.note = f"backward of: {forward.note}"
            return gemm
        if weight in read:
            gemm.role, gemm.weight_is_b = "dgrad", read[1] is weight
        else:
            gemm.role, gemm.gradient_is_a = "wgrad", read[1] is activation
        gemm.forward, gemm.layer, gemm.weight_names = forward, forward.layer, forward.weight_names
        forward.backward.append(gemm)
        return gemm
    return gemm


def _grouped_forward(node: fx.Node, origin: dict[fx.Node, Origin], facts: GraphFacts) -> Gemm:
    a, b = node.args[:2]
    gemm = Gemm(node, "other", layer_path(node))
    form = experts.read(node, weight_is_a=origin[a].is_weight)  # type: ignore[index]
    stacks = [x for x in (a, b) if isinstance(x, fx.Node) and origin[x].parameters and x.meta["val"].dim() == 3]
    whys = [
        why for x in stacks if (why := experts.stack_of(x, origin)) and (origin[x].is_weight or why == experts.GATHERED)
    ]
    if isinstance(form, str):
        gemm.note = form
    elif whys:
        gemm.note = whys[0]
    elif not origin[experts.operands(node, form)[1]].is_weight:
        gemm.note = ATTENTION_NOTE if node.target is aten.bmm.default else NO_WEIGHT
    elif origin[experts.operands(node, form)[0]].is_weight:
        gemm.note = WEIGHTS_ALONE
    elif not origin[experts.operands(node, form)[0]].activation:
        gemm.note = NO_ACTIVATION
    else:
        gemm.role, gemm.grouped = "fprop", form
        gemm.a, gemm.b, _ = experts.operands(node, form)
        gemm.weight_names = origin[gemm.b].parameters
        name = min(gemm.weight_names)
        # A module of experts has several stacks, so its path tells too little.
        gemm.layer = name if name in facts.stacks else gemm.layer or name.rpartition(".")[0]
    return gemm


def _grouped_backward(node: fx.Node, candidates: list[Gemm], origin: dict[fx.Node, Origin]) -> Gemm:
    """As `_backward`: dgrad reads the forward's stack of weights, wgrad its tokens."""
    gemm = Gemm(node, "other", layer_path(node), note=NO_FORWARD)
    read = _grouped_operands(node)
    for forward in candidates:
        if forward.grouped is None:
            if forward.a is None:  # told by the kind of product alone, in its forward as here
                gemm.note = forward.note
            continue
        assert forward.a is not None
        assert forward.b is not None
        weight, activation = root(forward.b), root(forward.a)
        if weight not in read and activation not in read:
            continue
        gemm.role = "dgrad" if weight in read else "wgrad"
        if node.target is aten.bmm.default and gemm.role == "wgrad":
            form: Grouped | str = experts.as_wgrad()
        else:
            form = experts.read(node, weight_is_a=read[0] is weight)
        if isinstance(form, str):
            gemm.role, gemm.note = "other", form
            return gemm
        gemm.grouped = form
        gemm.a, gemm.b, _ = experts.operands(node, form)
        gemm.gradient_is_a = root(gemm.a) is not activation
        gemm.forward, gemm.layer, gemm.weight_names = forward, forward.layer, forward.weight_names
        forward.backward.append(gemm)
        return gemm
    return gemm


def _grouped_operands(node: fx.Node) -> list[fx.Node]:
    form = experts.read(node)
    return [] if isinstance(form, str) else [root(operand) for operand in experts.operands(node, form)[:2]]


def _operands(node: fx.Node) -> tuple[fx.Node | None, fx.Node, fx.Node]:
    addend, a, b = node.args if len(node.args) == 3 else (None, *node.args)
    return addend, a, b  # type: ignore[return-value]


def _in_backward(node: fx.Node) -> bool:
    return node.meta.get("partitioner_tag") == "is_backward"


def _as_graph(gemms: list[Gemm]) -> nx.DiGraph:
    graph = nx.DiGraph()
    for gemm in gemms:
        graph.add_node(gemm.node.name, kind="gemm", gemm=gemm, role=gemm.role, layer=gemm.layer)
    for gemm in gemms:
        for operand, side in ((gemm.a, "a"), (gemm.b, "b")):
            if operand is not None:
                tensor = root(operand).name
                if tensor not in graph:
                    graph.add_node(tensor, kind="tensor")
                graph.add_edge(tensor, gemm.node.name, kind="reads", side=side)
        for backward in gemm.backward:
            graph.add_edge(gemm.node.name, backward.node.name, kind=backward.role)
    return graph
