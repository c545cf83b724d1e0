"""Where values come from: looking through views and casts, and telling weights from activations."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from spectral_compile._torch import graph_input_index

aten = torch.ops.aten
prims = torch.ops.prims

VIEWS = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.detach.default,
        aten.expand.default,
        aten.permute.default,
        aten.reshape.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
        aten._unsafe_view.default,
    }
)
CASTS = frozenset({aten._to_copy.default, prims.convert_element_type.default})
_WHOLE_VIEWS = VIEWS - {aten.select.int, aten.slice.Tensor}


@dataclass(frozen=True)
class Origin:
    """What a value is computed from: which parameters, whether any activation (an input that is no parameter), whether
    any tangent, which makes it part of the backward; and whether all of it went through a product, as learned queries
    do and a weight with a low-rank correction does not.
    """

    parameters: frozenset[str] = frozenset()
    activation: bool = False
    gradient: bool = False
    product: bool = False

    @property
    def is_weight(self) -> bool:
        """Computed from parameters alone and by no product: the parameter itself, its cast, or a reparametrisation."""
        return bool(self.parameters) and not self.activation and not self.product

    def __or__(self, other: "Origin") -> "Origin":
        return Origin(
            self.parameters | other.parameters,
            self.activation or other.activation,
            self.gradient or other.gradient,
            self.product and other.product if self.parameters and other.parameters else self.product or other.product,
        )


def origins(graph: fx.Graph, parameter_names: Mapping[int, str]) -> dict[fx.Node, Origin]:
    """The origin of each node. parameter_names: the name of each Dynamo input, by index, that is a parameter."""
    found: dict[fx.Node, Origin] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            index = graph_input_index(node)
            name = parameter_names.get(index) if index is not None else None
            is_tensor = isinstance(node.meta.get("val"), torch.Tensor)
            is_tangent = index is None and "desc" in node.meta and node.meta.get("partitioner_tag") == "is_backward"
            unnamed = Origin(activation=is_tensor, gradient=is_tangent)
            found[node] = unnamed if name is None else Origin(frozenset({name}))
        else:
            origin = Origin()
            for argument in node.all_input_nodes:
                origin |= found[argument]
            is_product = "mm" in str(node.target) or "softmax" in str(node.target)
            found[node] = dataclasses.replace(origin, product=True) if is_product else origin
    return found


def root(node: fx.Node) -> fx.Node:
    """The tensor behind views and casts that keep all of its elements: what two products that read it share."""
    while node.target in _WHOLE_VIEWS or node.target in CASTS:
        node = node.args[0]  # type: ignore[assignment]
    return node


def is_transpose(node: fx.Node) -> bool:
    """Whether a node is the transpose of a matrix."""
    if node.target is aten.permute.default:
        return list(node.args[1]) == [1, 0]  # type: ignore[arg-type]
    return node.target is aten.t.default
