"""A graph as data: what a report tells of each node, ready for JSON. Dumps write one line of it a stage."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from spectral_compile.graph.provenance import layer_path
from spectral_compile.report.python_code import MADE_BY, describe

_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)\n(?:    (?!File )(.+)\n?)?', re.MULTILINE)
_TORCH = str(Path(torch.__file__).parent) + os.sep


def stage(
    name: str,
    kind: str,
    graph: fx.Graph,
    *,
    after: str = "",
    products: Sequence[str] = (),
    replaced: Mapping[str, tuple[str, str]] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One stage of a graph. kind: "joint", "forward" or "backward"; after: the pass that was run last.

    products: the node that each row of the plan is now. replaced: of nodes that passes replaced since the stage before,
    by name, the node in their place and the pass. parameters: the user's names of inputs.
    """
    sources: dict[str, int] = {}
    nodes = [_node(node, sources, parameters or {}) for node in graph.nodes if node.op != "output"]
    return {
        "name": name,
        "kind": kind,
        "after": after,
        "nodes": nodes,
        "outputs": [node.name for node in graph.output_node().all_input_nodes],
        "products": list(products),
        "replaced": {old: list(new) for old, new in (replaced or {}).items()},
        "sources": [list(_frames(trace)) for trace in sources],
    }


def _node(node: fx.Node, sources: dict[str, int], parameters: Mapping[str, str]) -> dict[str, Any]:
    """What is empty is left out: most nodes lack something, and there are thousands."""
    trace = node.meta.get("stack_trace")
    told = {
        "name": node.name,
        "op": "" if node.op == "call_function" else node.op,
        "target": _target(node),
        "inputs": [argument.name for argument in node.all_input_nodes],
        "type": describe(node.meta.get("val")),
        "layer": layer_path(node),
        "parameter": parameters.get(node.name, "") if node.op == "placeholder" else "",
        "by": node.meta.get(MADE_BY, ""),
        "seq": node.meta.get("seq_nr"),  # which forward operation a backward one belongs to
        "backward": node.meta.get("partitioner_tag") == "is_backward",
        "source": sources.setdefault(trace, len(sources)) if trace else None,
    }
    return {key: value for key, value in told.items() if value is not None and value is not False and value != ""}


def _target(node: fx.Node) -> str:
    if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    module = str(getattr(node.target, "__module__", "")).removeprefix("_")
    return f"{module}.{getattr(node.target, '__name__', node.target)}".removeprefix("builtins.")


def _frames(trace: str) -> Iterator[dict[str, Any]]:
    """The frames of a stack trace, outermost first, less torch's own."""
    for found in _FRAME.finditer(trace):
        file, line, function, code = found.groups()
        if not file.startswith(_TORCH):
            yield {"file": file, "line": int(line), "function": function, "code": (code or "").strip()}
