"""What must hold of a graph after every pass."""

from collections.abc import Set

from torch import fx

from spectral_compile._torch import OpOverload


def without_value(graph: fx.Graph) -> set[fx.Node]:
    """Nodes without their value's metadata: the partitioner leaves some, where it has random numbers drawn again."""
    return {node for node in graph.nodes if node.op == "call_function" and "val" not in node.meta}


def verify(graph: fx.Graph, after: str, known: Set[fx.Node] = frozenset()) -> None:
    """Raise an AssertionError naming the pass if the graph is malformed or a node lacks its value's metadata, but for
    those that are known to from before the pass.
    """
    try:
        graph.lint()
    except RuntimeError as error:
        raise AssertionError(f"pass {after} left a malformed graph: {error}") from error
    if missing := without_value(graph) - known:
        raise AssertionError(f"pass {after} left {min(node.name for node in missing)} without meta['val']")
    for node in graph.nodes:
        if is_ours(node) and any("val" not in argument.meta for argument in node.all_input_nodes):
            raise AssertionError(f"pass {after}: {node.name} reads a node without meta['val']")


def holds_spectral_operators(graph: fx.Graph) -> bool:
    """Whether a graph has been rewritten already."""
    return any(is_ours(node) for node in graph.nodes)


def is_ours(node: fx.Node) -> bool:
    """Whether a node calls one of our operators."""
    return isinstance(node.target, OpOverload) and node.target.namespace == "spectral"
