"""A graph as a Python file that runs: with each line's shape, its layer or product, and the pass that made it."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from spectral_compile.graph.emit import PRODUCT
from spectral_compile.graph.provenance import layer_path

MADE_BY = "spectral_pass"  # in a node's metadata

_HEADER = '''"""{title}

Run it: python {name}
"""

import torch
from math import inf, nan
from torch import device, fx, tensor

import spectral_compile

'''
_ARGUMENTS = '''

def inputs():
    """Tensors like those that the graph was compiled for, made up."""
    torch.manual_seed(0)
    return [
{lines}
    ]


if __name__ == "__main__":
    for result in forward(*inputs()):
        print(result.dtype, tuple(result.shape)) if isinstance(result, torch.Tensor) else print(result)
'''


def python_file(graph: fx.Graph, name: str, title: str) -> str:
    """The text of a file `name` that computes what the graph does, and that makes up inputs when it is run."""
    return _HEADER.format(title=title, name=name) + _function(graph) + _ARGUMENTS.format(lines=_made_up(graph))


def _function(graph: fx.Graph) -> str:
    """def forward(...), its lines annotated. (FX names modules' parts `self.x`: our graphs have none.)"""
    graph = plain_copy(graph)
    nodes = {node.name: node for node in graph.nodes if node.op not in ("placeholder", "output")}
    source = str(graph.python_code("self").src).strip()
    source = source.replace("def forward(self, ", "def forward(").replace("def forward(self)", "def forward()")
    source = re.sub(r"\) *-> *[^:\n]*:", "):", source, count=1)
    return "\n".join(_annotated(_without_dels(line), nodes) for line in source.splitlines()) + "\n"


def plain_copy(graph: fx.Graph) -> fx.Graph:
    """A copy with names and metadata, that takes its inputs one by one: joint graphs take two lists of them."""
    twin = fx.Graph()
    twin.output(twin.graph_copy(graph, {}))
    twin.output_node().meta = dict(graph.output_node().meta)
    return twin


def _without_dels(line: str) -> str:
    """FX frees each value after its last use, which is noise to a reader."""
    return re.sub(r";  (?:\w+ = )+None$", "", line)


def _annotated(line: str, nodes: Mapping[str, fx.Node]) -> str:
    node = nodes.get(line.strip().partition(" ")[0])
    if node is None:
        return line
    made_by = node.meta.get(MADE_BY)
    told = (describe(node.meta.get("val")), node.meta.get(PRODUCT) or layer_path(node), made_by and f"by {made_by}")
    return f"{line}  # {', '.join(filter(None, told))}"


def describe(value: Any) -> str:
    """A tensor's type and shape, as bf16[2048, 1024]."""
    if isinstance(value, torch.Tensor):
        return f"{short(value.dtype)}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(describe(item) for item in value)})"
    return str(value)


def short(dtype: torch.dtype) -> str:
    """float32 as f32, bfloat16 as bf16."""
    name = str(dtype).removeprefix("torch.")
    return name.replace("bfloat", "bf").replace("float", "f").replace("uint", "u").replace("int", "i")


def _made_up(graph: fx.Graph) -> str:
    return "\n".join(f"        {_value(node)},  # {node.name}" for node in graph.find_nodes(op="placeholder"))


def _value(node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return str(_hint(value))
    shape = [_hint(size) for size in value.shape]
    if value.dtype.is_floating_point:
        return f"torch.randn({shape}).to({value.dtype})"
    return f"torch.ones({shape}, dtype={value.dtype})"


def _hint(size: Any) -> Any:
    """The number that a symbolic size stood for when the graph was compiled."""
    return size.node.hint if isinstance(size, torch.SymInt) else size
