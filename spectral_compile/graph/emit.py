"""Inserting nodes: every one with its metadata, equal ones only once.

Dynamo and the partitioner read metadata (is a node forward, is it to be recomputed under checkpointing); an untagged
node would silently be saved for backward.
"""

import operator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

PRODUCT = "spectral_product"  # in the metadata of a product, and of what takes its place: its layer and role

_SAVE = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)
_INHERITED = (
    "partitioner_tag",
    "seq_nr",
    "nn_module_stack",
    "fwd_nn_module_stack",
    "source_fn_stack",
    "stack_trace",
    "recompute",
    "ac_graph_id",
    "custom",
)


class Emitter:
    """Adds calls to a graph. An equal call on equal operands, anywhere before, is reused: one quantisation serves all
    the GEMMs that read a tensor.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._last_input = [next(iter(graph.nodes)), *graph.find_nodes(op="placeholder")][-1]
        self._known: dict[Any, fx.Node] = {}
        self._numbers: dict[fx.Node, Any] = {}

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node, share: Any = None, **kwargs: Any) -> fx.Node:
        """The node of target(*args, **kwargs), directly after the latest of its operands.

        It inherits the metadata of `like`. `share`: what tells equal calls apart, instead of all of `args`.
        """
        told_apart = (*(args if share is None else share), *kwargs.items())
        key = (target, self._number(told_apart), like.meta.get("ac_graph_id"))
        after = max([self._last_input, *_nodes_in(args)])  # nodes compare by their place in the graph
        if key in self._known:
            known = self._known[key]
            if not max([self._last_input, *_nodes_in(known.args)]) < after:  # this place is no later than its own
                known.args = args
                after.append(known)
            return known
        with self.graph.inserting_after(after):
            node = self.graph.call_function(target, args, kwargs)
        self._annotate(node, like)
        if node.meta.get("recompute") in _SAVE:
            # Selective checkpointing asks for a product's result to be saved, not for all that goes into it.
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
        self._known[key] = node
        return node

    def outputs(self, node: fx.Node, count: int) -> tuple[fx.Node, ...]:
        """The results of an operator that returns several."""
        return tuple(self.call(operator.getitem, (node, i), like=node) for i in range(count))

    def size(self, node: fx.Node, dim: int) -> int | fx.Node:
        """The extent of a dimension: a number, or a node where shapes are dynamic."""
        extent = node.meta["val"].shape[dim]
        if isinstance(extent, int):
            return extent
        return self.call(torch.ops.aten.sym_size.int, (node, dim), like=node)

    def round_up(self, extent: int | fx.Node, multiple: int, like: fx.Node) -> int | fx.Node:
        """The next multiple: a number, or a node where shapes are dynamic."""
        if isinstance(extent, int):
            return -(-extent // multiple) * multiple
        count = self.call(operator.floordiv, (self.call(operator.add, (extent, multiple - 1), like), multiple), like)
        return self.call(operator.mul, (count, multiple), like)

    def forget_dead(self) -> None:
        """Reuse nothing that has left the graph: to be called after dead code was eliminated."""
        alive = set(self.graph.nodes)
        self._known = {key: node for key, node in self._known.items() if node in alive}

    def replace(self, old: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
        """Put target(*args) in the place of `old`, which is erased; shape and dtype must be the same."""
        with self.graph.inserting_before(old):
            new = self.graph.call_function(target, args)
        self._annotate(new, old)
        for key in ("original_aten", "from_node", PRODUCT):
            if key in old.meta:
                new.meta[key] = old.meta[key]
        before, after = old.meta["val"], new.meta["val"]
        if before.shape != after.shape or before.dtype != after.dtype:
            raise AssertionError(f"{old.name} {before.shape} {before.dtype} became {after.shape} {after.dtype}")
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)
        return new

    def _annotate(self, node: fx.Node, like: fx.Node) -> None:
        for key in _INHERITED:
            if key in like.meta:
                node.meta[key] = like.meta[key]
        values = fx.node.map_arg(node.args, lambda n: n.meta["val"])
        around = _tensors_in((values, like.meta.get("val")))
        mode = next((v.fake_mode for v in around if hasattr(v, "fake_mode")), None)
        if mode is None:
            raise AssertionError(f"no fake tensor to compute the value of {node.target} with")
        with mode:
            node.meta["val"] = node.target(*values, **node.kwargs)  # type: ignore[operator]

    def _number(self, value: Any) -> Any:
        """Equal for nodes that surely hold the same values: the same node, or the same view of the same node."""
        if isinstance(value, fx.Node):
            if value not in self._numbers:
                pure_view = value.op == "call_function" and value.target in _SHAREABLE
                own = (value.target, self._number(value.args), self._number(tuple(value.kwargs.items())))
                self._numbers[value] = own if pure_view else value
            return self._numbers[value]
        if isinstance(value, (list, tuple)):
            return tuple(self._number(v) for v in value)
        return (type(value), value)


_SHAREABLE = frozenset(
    {
        torch.ops.aten.view.default,
        torch.ops.aten.reshape.default,
        torch.ops.aten.permute.default,
        torch.ops.aten.t.default,
        torch.ops.prims.convert_element_type.default,
        torch.ops.aten.sym_size.int,
    }
)


def _nodes_in(args: Any) -> list[fx.Node]:
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, fx.Node)]


def _tensors_in(values: Any) -> list[Any]:
    return [v for v in pytree.tree_leaves(values) if isinstance(v, torch.Tensor)]
