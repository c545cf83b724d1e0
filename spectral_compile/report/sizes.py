"""Bytes that a partitioned graph keeps from its forward for its backward: numbers, or symbolic in dynamic sizes."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx, nn

from spectral_compile._torch import detect_fake_mode, min_cut_rematerialization_partition
from spectral_compile.graph.verify import holds_spectral_operators

Size: TypeAlias = Any  # a sympy expression

_USER_OUTPUTS = "num_fwd_outputs"  # in a forward graph's output node: how many of the results are the user's


def mark_user_outputs(forward: fx.Graph, count: int) -> None:
    """Leave a note of where the user's results end and what is saved begins."""
    forward.output_node().meta[_USER_OUTPUTS] = count


def saved(forward: fx.Graph) -> dict[str, Size]:
    """Bytes of what a forward graph saves, by node, less what is alive anyway: its inputs. Views count as what they are
    views of, once.
    """
    output = forward.output_node()
    results = output.args[0]
    assert isinstance(results, (list, tuple))
    kept = results[output.meta[_USER_OUTPUTS] :]
    stored = dict.fromkeys(_behind_views(node) for node in kept if isinstance(node, fx.Node))
    return {node.name: _bytes(node) for node in stored if node.op != "placeholder"}


def user_outputs(forward: fx.Graph) -> int:
    """How many of a forward graph's results are the user's, as was noted."""
    count: int = forward.output_node().meta[_USER_OUTPUTS]
    return count


def saved_for(backward: fx.Graph, joint: fx.Graph) -> dict[str, Size]:
    """As `saved`, told by what the backward reads: Inductor changes its forward graph before anybody can look."""
    nodes = {node.name: node for node in joint.nodes}
    read = [nodes.get(node.name, node) for node in backward.find_nodes(op="placeholder")]
    stored = dict.fromkeys(_behind_views(node) for node in read)
    inputs = {node.name for node in joint.find_nodes(op="placeholder")}  # tangents as well
    return {node.name: _bytes(node) for node in stored if node.name not in inputs}


def saved_unchanged(joint: fx.Graph, root: nn.Module, count: int) -> Size:
    """Bytes that would be saved of a joint graph as it was before any pass, with the module that holds its constants;
    `count` of its results are the user's.
    """
    assert not holds_spectral_operators(joint)
    module = fx.GraphModule(root, joint)
    values = [node.meta["val"] for node in joint.find_nodes(op="placeholder")]
    with detect_fake_mode(values) or contextlib.nullcontext():  # asked for where a checkpointed region draws at random
        before, _ = min_cut_rematerialization_partition(module, None, num_fwd_outputs=count)
    mark_user_outputs(before.graph, count)
    return sum(saved(before.graph).values(), start=sympy.Integer(0))


def saved_by_products(joint: fx.Graph, products: Sequence[str], kept: dict[str, Size]) -> list[Size]:
    """For each product of a rewritten joint graph, by name, the bytes among `kept` that it reads."""
    nodes = {node.name: node for node in joint.nodes}
    sizes = []
    for name in products:
        read = {_behind_views(node) for node in nodes[name].all_input_nodes} if name in nodes else set()
        sizes.append(sum((kept[node.name] for node in read if node.name in kept), start=sympy.Integer(0)))
    return sizes


def readable(size: Size) -> str:
    """For people: in KiB or MiB, or symbolic."""
    if not size.is_number:
        return f"{size} B"
    count = int(size)
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def flops(m: str, n: str, k: str) -> Size | None:
    """2 m n k, a number or symbolic; None for what is no product of two matrices."""
    return 2 * expression(m) * expression(n) * expression(k) if m else None


def number(size: Size) -> int | str:
    """For JSON: symbolic sizes as text."""
    return int(size) if size.is_number else str(size)


def expression(size: Any) -> Size:
    """A number, a symbolic size, or either as text: without torch's assumptions, which tell equal symbols apart."""
    return _parsed(str(size))


@functools.lru_cache(maxsize=4096)  # a graph has few different sizes, and many of each
def _parsed(text: str) -> Size:
    return sympy.Integer(int(text)) if text.isdigit() else sympy.sympify(text)


def _behind_views(node: fx.Node) -> fx.Node:
    while getattr(node.target, "is_view", False):
        node = node.all_input_nodes[0]
    return node


def _bytes(node: fx.Node) -> Size:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return sympy.Integer(8)
    return expression(value.numel()) * value.element_size()
