"""Writing nodes into a Dynamo graph, each with its value, in one place; and taking them out again."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from spectral_compile.passes.headwise_router.flow import value

_INHERITED = ("nn_module_stack", "stack_trace", "custom", "source_fn_stack")


class Writer:
    """Adds nodes directly after `place`. They belong to the module that `like` came from."""

    def __init__(self, graph: fx.Graph, place: fx.Node, like: fx.Node) -> None:
        self.graph = graph
        self.place = self.last = place
        self.like = like
        self.written: list[fx.Node] = []
        self.splits: dict[tuple[fx.Node, int, int], fx.Node] = {}
        self.mode = value(like).fake_mode

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """The node of target(*args, **kwargs)."""
        return self.node("call_function", target, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """The node of args[0].name(*args[1:], **kwargs)."""
        return self.node("call_method", name, args, kwargs)

    def narrow(self, tensor: fx.Node, axis: int, start: int, length: int) -> fx.Node:
        """A slice of a tensor; the tensor itself where that is all of it.

        All slices of a tensor are results of one split, whose gradient is one concatenation: that of a slice alone
        is as large as the tensor, and those of all are added up.
        """
        if value(tensor).shape[axis] == length:
            return tensor
        key = tensor, axis % value(tensor).dim(), length
        if key not in self.splits:
            self.splits[key] = self.call(torch.split, tensor, length, key[1])
        return self.call(operator.getitem, self.splits[key], start // length)

    def node(
        self, op: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], like: fx.Node | None = None
    ) -> fx.Node:
        """Any node; `like` is what it stands in for, the writer's own where nothing is said."""
        with self.graph.inserting_after(self.last):
            node = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        self.last = node
        self.written.append(node)
        for key in _INHERITED:
            if key in (like or self.like).meta:
                node.meta[key] = (like or self.like).meta[key]
        given, named = fx.map_arg((node.args, node.kwargs), value)
        with self.mode, torch.no_grad():
            made = target(*given, **named) if op == "call_function" else getattr(given[0], target)(*given[1:], **named)
        if isinstance(made, Tensor):  # as Dynamo's own values are: some operations ask
            made = made.detach()
        node.meta["example_value"] = made
        return node

    def take_back(self) -> None:
        """As if nothing had been written."""
        for node in reversed(self.written):
            self.graph.erase_node(node)
        self.written.clear()
