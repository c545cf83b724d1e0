"""Results of our operators in memory that Inductor plans: reused within a step, not page-faulted at each call."""

import operator

import torch
import torch.utils._pytree as pytree
from torch import fx

from spectral_compile.graph.verify import is_ours
from spectral_compile.ops.library import planned


def plan_memory(graph: fx.Graph) -> None:
    """Put the twin with an overload `out` in the place of each of our operators all of whose results are read.

    Their sizes are numbers: Inductor 2.13 makes no such layout of symbols.
    """
    for node in graph.nodes:
        twin = planned(node.target) if is_ours(node) else None
        if twin is not None and _all_results_are_read(node) and not _is_dynamic(node):
            node.target = twin


def _is_dynamic(node: fx.Node) -> bool:
    results = pytree.tree_leaves(node.meta["val"])
    return any(isinstance(size, torch.SymInt) for result in results for size in (*result.shape, *result.stride()))


def _all_results_are_read(node: fx.Node) -> bool:
    if not isinstance(node.meta["val"], (tuple, list)):
        return bool(node.users)
    read = {user.args[1] for user in node.users if user.target is operator.getitem and user.users}
    return len(read) == len(node.meta["val"])
