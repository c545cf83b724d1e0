"""Values for a dumped file to run on: like the graph's inputs, and what the graph holds beside them."""

import math
from typing import Any

import torch
from torch import fx

WRITTEN_OUT = 64  # elements of a constant


def inputs(graph: fx.Graph) -> list[tuple[str, str]]:
    """For each input its name, and an expression for a value like it."""
    return [(node.name, _like_input(node)) for node in graph.find_nodes(op="placeholder")]


def _like_input(node: fx.Node) -> str:
    value = value_of(node)
    again = torch.ops.higher_order.run_with_rng_state  # draws as the forward did
    if any(user.target is again and user.args[0] is node for user in node.users):
        return "torch.cuda.get_rng_state()" if value.device.type == "cuda" else "torch.get_rng_state()"
    return like(value)


def value_of(node: fx.Node) -> Any:
    """What a node stood for in the trace: Dynamo keeps that under another name than AOTAutograd."""
    return node.meta.get("val", node.meta.get("example_value"))


def like(value: Any) -> str:
    """An expression for a tensor of the same type, shape, strides and device; numbers are as they were."""
    if not isinstance(value, torch.Tensor):
        return str(_hint(value))
    if (number := _hint(getattr(value, "item_memo", None))) is not None:  # a number that Dynamo made dynamic
        return f"torch.tensor({number}, dtype={value.dtype})"
    shape, strides = [_hint(size) for size in value.shape], [_hint(stride) for stride in value.stride()]
    where = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
    dense = strides == _contiguous(shape)
    extent = shape if dense else [_extent(shape, strides)]
    if value.dtype.is_floating_point or value.dtype.is_complex:
        made = f"torch.randn({extent}{where}).to({value.dtype})"
    else:
        made = f"torch.ones({extent}, dtype={value.dtype}{where})"
    return made if dense else f"{made}.as_strided({shape}, {strides})"


def constant(value: Any) -> str:
    """An expression for what a graph holds: small tensors as they are, others made up, and that is said."""
    if not isinstance(value, torch.Tensor):
        return f"None  # in the graph: {type(value).__name__}"
    if value.numel() > WRITTEN_OUT or not _readable(value):
        return f"{like(value)}  # made up"
    where = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
    return f"torch.tensor({value.tolist()}, dtype={value.dtype}{where})"


def _readable(value: torch.Tensor) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter) and not value.is_meta and value.layout == torch.strided


def _contiguous(shape: list[int]) -> list[int]:
    return [math.prod(max(size, 1) for size in shape[place + 1 :]) for place in range(len(shape))]


def _extent(shape: list[int], strides: list[int]) -> int:
    """How many elements lie between the first and the last."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _hint(size: Any) -> Any:
    """The number that a symbolic size stood for when the graph was compiled."""
    return size.node.hint if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) else size
