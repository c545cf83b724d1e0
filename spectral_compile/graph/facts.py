"""What only Dynamo's graph knows: the names of inputs, and which of them are parameters.

Gathered in the backend, before anything is looked up in a cache; the plan is computed from these facts, the joint
graph and the options, so their digest goes into the cache key.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from spectral_compile._torch import dynamo_source_name

_MATMULS = ("linear", "matmul", "mm", "einsum", "tensordot", "attention")  # parts of names: too many beat too few


@dataclass(frozen=True)
class GraphFacts:
    """inputs: the parameter's name for each input of the Dynamo graph that is one, else None.

    modules: for each call in the graph, the paths and classes of the modules it came from.
    has_matmul: whether any call may be a matrix product; multiplying: the innermost modules of those calls.
    stacks: the names of parameters of three axes, as stacks of experts are.
    differentiates: whether torch.func does inside the graph what autograd does outside, where forward and backward
    cannot be told apart.
    """

    inputs: tuple[str | None, ...]
    modules: tuple[str, ...]
    has_matmul: bool
    differentiates: bool = False
    multiplying: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()

    @property
    def has_weights_that_multiply(self) -> bool:
        """Optimizer steps and graphs without parameters have none."""
        return self.has_matmul and any(name is not None for name in self.inputs)

    @property
    def layers(self) -> frozenset[str]:
        """The paths that a rule can match: of modules that multiply, of those that own a parameter, and of stacks."""
        owners = (name.rpartition(".")[0] for name in self.inputs if name is not None)
        return frozenset({*self.multiplying, *owners, *self.stacks})


def gather(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> GraphFacts:
    """The facts of one Dynamo graph."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    inputs = tuple(
        plain_path(dynamo_source_name(node)) if isinstance(example, nn.Parameter) else None
        for node, example in zip(placeholders, example_inputs, strict=True)
    )
    calls = [node for node in all_nodes(gm) if node.op in ("call_function", "call_method", "call_module")]
    modules = tuple(" ".join(f"{path}:{_class_name(kind)}" for path, kind in module_stack(node)) for node in calls)
    stacks = [module_stack(node) for node in calls if _is_matmul(node)]
    multiplying = tuple(sorted({stack[-1][0] for stack in stacks if stack}))
    deep = tuple(name for name, example in zip(inputs, example_inputs, strict=True) if name and example.dim() == 3)
    return GraphFacts(inputs, modules, bool(stacks), any(map(_is_functorch, calls)), multiplying, deep)


def module_stack(node: fx.Node) -> list[tuple[str, type]]:
    """The modules a node came from, outermost first: (path, class). Backward nodes name their forward's modules."""
    return [(plain_path(path), kind) for path, kind in raw_module_stack(node)]


def raw_module_stack(node: fx.Node) -> list[tuple[str, type]]:
    """As `module_stack`, with paths as Dynamo writes them."""
    return list((node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}).values())


def plain_path(expression: str) -> str:
    """The path as users write it, of Dynamo's expression for it: L['self']._modules['0']._parameters['weight'] and
    L['self'].layers[0] become 0.weight and layers.0.
    """
    path, changed = expression, 1
    while changed:  # from the inside out
        path, changed = re.subn(r"getattr\(([^()]*), '([^']+)'\)", r"\1.\2", path)
    path = re.sub(r"^L\['spectral_(?:arguments|named)'\]\['?[^'\]]+'?\]", "", path)  # of a decorator's own frame
    path = re.sub(r"^[LG]\['[^']+'\]", "", path)
    path = re.sub(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", r".\1", path)
    path = re.sub(r"\['?([^'\]]+)'?\]", r".\1", path)
    return path.strip(".")


def all_nodes(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """Nodes of the graph and of its subgraphs (checkpointed regions are submodules)."""
    for module in gm.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _is_matmul(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return any(part in name for part in _MATMULS)


def _is_functorch(node: fx.Node) -> bool:
    return "functorch" in str(getattr(node.target, "__module__", "")) and "grad" in getattr(node.target, "__name__", "")


def _class_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)
