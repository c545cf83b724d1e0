"""A graph as a Python file that runs: with each line's shape, its layer or product, and the pass that made it."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx

from spectral_compile.graph.emit import PRODUCT
from spectral_compile.graph.provenance import layer_path
from spectral_compile.report import made_up

MADE_BY = "spectral_pass"  # in a node's metadata

_HEADER = '''"""{title}

Run it: python {name}
"""

import torch
from math import inf, nan
from torch import device, fx, tensor
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree
from types import NoneType, SimpleNamespace
{imports}
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
_SELF = "self"  # what the graph holds beside its inputs: constants, and functions that checkpointed regions are


def python_file(graph: fx.Graph, name: str, title: str) -> str:
    """The text of a file `name` that computes what the graph does, and that makes up inputs when it is run."""
    imports: dict[str, str] = {}
    functions = _functions(graph, "forward", _SELF, imports)
    header = _HEADER.format(title=title, name=name, imports="".join(f"{line}\n" for line in imports.values()))
    lines = "\n".join(f"        {value},  # {called}" for called, value in made_up.inputs(graph))
    return header + functions + _ARGUMENTS.format(lines=lines)


def _functions(graph: fx.Graph, name: str, held: str, imports: dict[str, str]) -> str:
    """def <name>(...), its lines annotated, behind what it reads: the graph's constants and the functions it calls."""
    root = graph.owning_module
    graph = plain_copy(graph)
    for node in graph.find_nodes(op="placeholder"):
        node.target, node.type = node.name, None  # Dynamo's targets say where Dynamo read them
    _checkpoint_by_function(graph)
    code = graph.python_code(held)
    imports |= {called: line for called, value in code.globals.items() if (line := _import(called, value))}
    nodes = {node.name: node for node in graph.nodes if node.op not in ("placeholder", "output")}
    source = (
        code.src.strip().replace("def forward(self, ", f"def {name}(").replace("def forward(self)", f"def {name}()")
    )
    source = re.sub(r"\) *-> *[^:\n]*:", "):", source, count=1)
    lines = [_annotated(_without_dels(line), nodes) for line in source.splitlines()]
    return _what_is_held(graph, root, held, imports) + "\n".join(lines) + "\n"


def _what_is_held(graph: fx.Graph, root: Any, held: str, imports: dict[str, str]) -> str:
    """`<held> = SimpleNamespace()` and its attributes; nothing where the graph has none."""
    text = ""
    for target, users in {str(node.target): node.users for node in graph.find_nodes(op="get_attr")}.items():
        *path, _ = parts = target.split(".")
        for depth in range(len(path) + 1):
            namespace = ".".join((held, *path[:depth]))
            text += "" if f"{namespace} = Simple" in text else f"{namespace} = SimpleNamespace()\n"
        value = functools.reduce(lambda module, part: getattr(module, part, None), parts, root)
        if isinstance(value, fx.GraphModule):
            called = "_".join((held, *parts))
            checkpointed = all(user.target is torch.utils.checkpoint.checkpoint for user in users)
            made = called if checkpointed else f"fx.symbolic_trace({called})"  # other operators of torch want a graph
            text += f"\n\n{_functions(value.graph, called, f'{called}_{_SELF}', imports)}\n\n"
            text += f"{held}.{target} = {made}\n"
        else:
            text += f"{held}.{target} = {made_up.constant(value)}\n"
    return f"{text}\n\n" if text else ""


def _checkpoint_by_function(graph: fx.Graph) -> None:
    """Checkpointed regions by the function that users call: torch's operator for them takes no function."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.higher_order.tag_activation_checkpoint):
        node.target = torch.utils.checkpoint.checkpoint


def _import(name: str, value: Any) -> str:
    """The line that imports a function or type which the graph calls by this name; none for what the header imports."""
    module, called = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if f" {name}\n" in _HEADER or f" {name}," in _HEADER or module is None or called is None:
        return ""
    return f"from {module} import {called} as {name}"


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
    value = made_up.value_of(node)
    told = (
        "" if value is None else describe(value),
        node.meta.get(PRODUCT) or layer_path(node),
        made_by and f"by {made_by}",
    )
    return f"{line}  # {', '.join(filter(None, told))}" if any(told) else line


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
