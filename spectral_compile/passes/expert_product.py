"""A product with a stack of weights, in the one form that passes rewrite: groups of tokens and offsets."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from spectral_compile.graph.emit import PRODUCT, Emitter
from spectral_compile.graph.experts import operands
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.operand import behind_transpose, transpose

aten = torch.ops.aten
prims = torch.ops.prims
spectral = torch.ops.spectral

_SWAPPED = [0, 2, 1]


@dataclass(frozen=True)
class ExpertProduct:
    """What `spectral::grouped_split_mm` computes of these."""

    a: fx.Node
    b: fx.Node
    offsets: fx.Node
    left: fx.Node | None = None
    right: fx.Node | None = None


def read_expert_product(emit: Emitter, gemm: Gemm) -> ExpertProduct:
    """Of a node as it was traced, or as an earlier pass has left it."""
    if gemm.node.target is spectral.grouped_split_mm.default:
        return ExpertProduct(*gemm.node.args[:5])  # type: ignore[arg-type]
    form = gemm.grouped
    assert form is not None
    a, b, offsets = operands(gemm.node, form)
    if offsets is None:
        offsets = _even_offsets(emit, gemm, a, form.a[1])
    in_groups = form.offsets is not None
    tokens = _tokens(emit, a, form.a[1], in_groups)
    other = _tokens(emit, b, form.b[1], in_groups) if form.ragged_k else swapped(emit, b, form.b[1])
    return ExpertProduct(tokens, other, offsets)


def put(emit: Emitter, gemm: Gemm, target: Any, arguments: tuple[Any, ...]) -> None:
    """Have target(*arguments), a product in the form of `ExpertProduct`, take the place of the node."""
    form, old = gemm.grouped, gemm.node
    assert form is not None
    batched = form.offsets is None and not form.ragged_k
    if old.target is spectral.grouped_split_mm.default or not (form.transposed or batched):
        gemm.node = emit.replace(old, target, arguments)
        return
    gemm.node = emit.call(target, arguments, like=old)
    for key in ("original_aten", "from_node", PRODUCT):
        if key in old.meta:
            gemm.node.meta[key] = old.meta[key]
    last: tuple[Any, tuple[Any, ...]] = (aten.permute.default, (gemm.node, _SWAPPED))
    if batched:
        tokens, _, _ = operands(old, form)
        shape = [emit.size(tokens, 0), emit.size(tokens, 2 if form.a[1] else 1), emit.size(gemm.node, 1)]
        last = aten.view.default, (gemm.node, shape)
        if form.transposed:
            # bmm's results are contiguous, and what views them relies on it.
            lies = emit.call(aten.permute.default, (emit.call(*last, like=old), _SWAPPED), like=old)
            last = aten.clone.default, (lies,)
    if batched and form.transposed:
        new = emit.call(*last, like=old, memory_format=torch.contiguous_format)
        old.replace_all_uses_with(new)
        emit.graph.erase_node(old)
    else:
        emit.replace(old, *last)


def behind_swap(node: fx.Node) -> tuple[fx.Node, bool]:
    """The stack behind any number of swaps of its last two axes, and whether an odd number stood before it."""
    flipped = False
    while node.target is aten.permute.default and list(node.args[1]) == _SWAPPED:  # type: ignore[arg-type]
        node, flipped = node.args[0], not flipped  # type: ignore[assignment]
    return node, flipped


def swapped(emit: Emitter, node: fx.Node, wanted: bool) -> fx.Node:
    """The node, or with its last two axes swapped where that is wanted."""
    node, flipped = behind_swap(node)
    return emit.call(aten.permute.default, (node, _SWAPPED), like=node) if flipped != wanted else node


def _tokens(emit: Emitter, node: fx.Node, flipped: bool, in_groups: bool) -> fx.Node:
    """[tokens, features]; those of a batch in the order of its experts."""
    if in_groups:
        matrix, transposed = behind_transpose(node)
        return transpose(emit, matrix, transposed != flipped)
    node = swapped(emit, node, flipped)
    if not node.meta["val"].is_contiguous():
        node = emit.call(aten.clone.default, (node,), like=node, memory_format=torch.contiguous_format)
    return emit.call(aten.view.default, (node, [-1, emit.size(node, 2)]), like=node)


def _even_offsets(emit: Emitter, gemm: Gemm, node: fx.Node, flipped: bool) -> fx.Node:
    """int32 [experts], where each expert of a batch has as many tokens."""
    like = gemm.like("activation")
    how = {"dtype": torch.int32, "device": node.meta["val"].device, "requires_grad": False}
    number = emit.call(prims.iota.default, (int(node.meta["val"].shape[0]),), like=like, start=1, step=1, **how)
    return emit.call(aten.mul.Tensor, (number, emit.size(node, 2 if flipped else 1)), like=like)
