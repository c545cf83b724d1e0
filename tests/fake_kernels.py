"""Does an operator's fake kernel promise what the operator returns?"""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from spectral_compile._torch import FakeTensorMode


def assert_fake_agrees(operator: Callable[..., Any], *arguments: Any) -> None:
    """Results have the same number, shapes, dtypes, strides and device on fake tensors as on real ones."""
    mode = FakeTensorMode()
    faked = pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
    with mode:
        promised = _layouts(operator(*faked))
    assert promised == _layouts(operator(*arguments))


def assert_one_trace_serves_all_sizes(
    function: Callable[..., Any], arguments: tuple[Tensor, ...], others: tuple[Tensor, ...]
) -> None:
    """A graph traced with symbolic sizes from `arguments` computes on `others` what `function` does, and no
    size of a result was taken for a number.
    """
    traced = make_fx(function, tracing_mode="symbolic")(*arguments)
    outputs = pytree.tree_leaves(traced.graph.output_node().args)
    sizes = [size for node in outputs for size in node.meta["val"].shape]
    assert not any(isinstance(size, int) for size in sizes), f"specialised: {sizes}"
    for got, expected in zip(pytree.tree_leaves(traced(*others)), pytree.tree_leaves(function(*others)), strict=True):
        assert equal_bits(got, expected)


def equal_bits(a: Tensor, b: Tensor) -> bool:
    """torch.equal, for float8 (which it cannot compare), and telling -0 from 0."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _layouts(outputs: Any) -> list[tuple[Any, ...]]:
    return [(tuple(t.shape), t.dtype, t.stride(), t.device.type) for t in pytree.tree_leaves(outputs)]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
