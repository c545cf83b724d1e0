"""Results of our operators in memory that Inductor plans: reused within a step, not page-faulted at each call."""

import operator

from torch import fx

from spectral_compile.graph.verify import is_ours
from spectral_compile.ops.library import planned


def plan_memory(graph: fx.Graph) -> None:
    """Put the twin with an overload `out` in the place of each of our operators all of whose results are read."""
    for node in graph.nodes:
        if is_ours(node) and (twin := planned(node.target)) is not None and _all_results_are_read(node):
            node.target = twin


def _all_results_are_read(node: fx.Node) -> bool:
    if not isinstance(node.meta["val"], (tuple, list)):
        return bool(node.users)
    read = {user.args[1] for user in node.users if user.target is operator.getitem and user.users}
    return len(read) == len(node.meta["val"])
