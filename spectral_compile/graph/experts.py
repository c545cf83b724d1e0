"""Products of stacks of weights, as experts are: grouped products, and `bmm`, read into one form.

    fprop, dgrad    [tokens, n]      = a [tokens, k], of which each expert has a group, by b [experts, k, n]
    wgrad           [experts, m, n]  = for each expert, a [tokens, m]' by b [tokens, n]

`bmm` is the case in which all experts have the same number of tokens.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from spectral_compile._torch import statically_known_true
from spectral_compile.graph.dataflow import Origin, root

aten = torch.ops.aten

Flipped = tuple[int, bool]  # which argument, and whether its last two axes are to be swapped

# What transformers compiles grouped products to where weights are not bf16; its backward is one operator.
FALLBACK, FALLBACK_BACKWARD = (
    "transformers.grouped_mm_fallback.default",
    "transformers.grouped_mm_fallback_backward.default",
)
_LOOK_UPS = (aten.index.Tensor, aten.index_select.default, aten.embedding.default, aten.gather.default)

ONE_WEIGHT = "batched product with one weight for all of the batch: stays in high precision"
GATHERED = (
    "weights gathered for each token: stays in high precision, as each copy multiplies one token;"
    ' set_experts_implementation("grouped_mm") multiplies each expert once'
)
LEFT_STACK = "grouped product with groups along its columns: stays in high precision"
WITH_MORE = "grouped product that adds a bias or has no offsets: stays in high precision"


@dataclass(frozen=True)
class Grouped:
    """How a node is a product in the form above. a, b, offsets: which arguments; nodes would be out of date once
    another product has been rewritten. With no offsets, axis 0 of both operands is the expert's. transposed: the node's
    result has the last two axes of the form's swapped.
    """

    a: Flipped
    b: Flipped
    offsets: int | None
    ragged_k: bool
    transposed: bool = False


def is_product(node: fx.Node) -> bool:
    """Whether a node is the result of a product with three-dimensional operands."""
    if node.target is operator.getitem:
        return _name(node.args[0]) == FALLBACK_BACKWARD
    return node.target in (aten.bmm.default, aten._grouped_mm.default) or _name(node) == FALLBACK


def operands(node: fx.Node, form: Grouped) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """a, b and offsets of a product, as the graph has them now."""
    arguments = _arguments(node)
    return arguments[form.a[0]], arguments[form.b[0]], None if form.offsets is None else arguments[form.offsets]


def read(node: fx.Node, weight_is_a: bool = False) -> Grouped | str:
    """The form of a product, or why it has none. weight_is_a: for `bmm`, where either may be the stack of weights."""
    if node.target is operator.getitem:
        return _read_fallback_backward(node)
    a, b, *more = _arguments(node)
    if node.target is aten.bmm.default:
        if weight_is_a:  # W X, whose transpose is X' W'
            return Grouped((1, True), (0, True), None, ragged_k=False, transposed=True)
        return Grouped((0, False), (1, False), None, ragged_k=False)
    if not more or more[0] is None or any(argument is not None for argument in more[1:2]):
        return WITH_MORE
    if a.meta["val"].dim() == 3:
        return LEFT_STACK
    if b.meta["val"].dim() == 3:
        return Grouped((0, False), (1, False), 2, ragged_k=False)
    return Grouped((0, True), (1, False), 2, ragged_k=True)


def as_wgrad() -> Grouped:
    """The form of a `bmm` that sums over tokens: A [experts, m, tokens] by B [experts, tokens, n]."""
    return Grouped((0, True), (1, False), None, ragged_k=True)


def stack_of(node: fx.Node, origin: dict[fx.Node, Origin]) -> str:
    """Why an operand of three axes, which parameters go into, is no stack of weights; empty if it is one."""
    behind = root(node)
    if behind.target in _LOOK_UPS and any(origin[source].is_weight for source in behind.all_input_nodes):
        return GATHERED
    held, shown = behind.meta["val"].numel(), node.meta["val"].numel()
    return "" if statically_known_true(held == shown) else ONE_WEIGHT


def _read_fallback_backward(node: fx.Node) -> Grouped:
    tokens, weight, gradient = 0, 1, 3
    if node.args[1] == 0:
        return Grouped((gradient, False), (weight, True), 2, ragged_k=False)
    # Its strides are the weight's: what views it later relies on them.
    strides = node.meta["val"].stride()
    if statically_known_true(strides[-1] > strides[-2]):
        return Grouped((gradient, False), (tokens, False), 2, ragged_k=True, transposed=True)
    return Grouped((tokens, False), (gradient, False), 2, ragged_k=True)


def _arguments(node: fx.Node) -> list[Any]:
    """Of the operator, by place: both of our two ask for them by name, too."""
    source = node.args[0] if node.target is operator.getitem else node
    assert isinstance(source, fx.Node)
    by_name = [source.kwargs.get(argument.name) for argument in source.target._schema.arguments]  # type: ignore[union-attr]
    return [*source.args, *by_name[len(source.args) :]]


def _name(node: object) -> str:
    return str(node.target) if isinstance(node, fx.Node) else ""
