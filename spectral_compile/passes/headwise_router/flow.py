"""What depends on what in a Dynamo graph, where operations may work in place."""

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

_IN_PLACE = {operator.iadd: "add", operator.isub: "sub", operator.imul: "mul", operator.itruediv: "div"}
_SPELLED = {"truediv": "div", "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub"}


def name_of(node: fx.Node) -> str:
    """An operation's name, however it is spelt: "div" of a / b, a /= b, torch.div(a, b) and a.div_(b)."""
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
    elif node.target is getattr:
        name = str(node.args[1])
    elif node.op == "call_function":
        name = _IN_PLACE.get(node.target) or getattr(node.target, "__name__", str(node.target)).strip("_")  # type: ignore[arg-type]
    else:
        return ""
    name = name.partition(".")[0]
    return _SPELLED.get(name, name)


def works_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    in_place = node.target in _IN_PLACE or node.target is operator.setitem or (name.endswith("_") and name[0] != "_")
    return node.op == "call_function" and in_place


class Flow:
    """Who reads whom: a node that reads what another has changed in place depends on both."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: place for place, node in enumerate(graph.nodes)}
        self.inputs: dict[fx.Node, list[fx.Node]] = {}
        self.users: dict[fx.Node, list[fx.Node]] = {node: [] for node in self.order}
        changed: dict[fx.Node, fx.Node] = {}  # by what: the last node that changed it
        for node in self.order:
            read = node.all_input_nodes
            self.inputs[node] = [*read, *(changed[one] for one in read if one in changed)]
            for one in self.inputs[node]:
                self.users[one].append(node)
            if works_in_place(node) and isinstance(node.args[0], fx.Node):
                changed[node.args[0]] = node

    def after(self, nodes: Iterable[fx.Node], but: fx.Node | None = None) -> set[fx.Node]:
        """The nodes, and all that depend on them; not by way of `but`."""
        return _closure(nodes, self.users, but)

    def before(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """The nodes, and all that they depend on."""
        return _closure(nodes, self.inputs)

    def sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """In the order of the graph."""
        return sorted(nodes, key=self.order.__getitem__)


def contexts(graph: fx.Graph) -> dict[fx.Node, tuple[Any, ...]]:
    """Under which autocasts, and with gradients or without, each node runs."""
    found: dict[fx.Node, tuple[Any, ...]] = {}
    entered: list[fx.Node] = []
    differentiates: Any = True
    for node in graph.nodes:
        called = getattr(node.target, "__name__", "")
        if called == "_enter_autocast":
            entered.append(node)
        elif called == "_exit_autocast":
            entered.remove(node.args[0])
        elif called == "_set_grad_enabled":
            differentiates = node.args[0]
        found[node] = (differentiates, *entered)
    return found


def value(node: fx.Node) -> Any:
    """What Dynamo computed a node's value to be, without data: a fake tensor, or what holds some."""
    return node.meta.get("example_value")


def shape(node: fx.Node) -> tuple[Any, ...]:
    """Of a node that is a tensor; () of any other."""
    return tuple(value(node).shape) if isinstance(value(node), Tensor) else ()


def _closure(nodes: Iterable[fx.Node], edges: dict[fx.Node, list[fx.Node]], but: fx.Node | None = None) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in found and node is not but:
            found.add(node)
            queue.extend(edges[node])
    return found
