"""Which kernels a quantised product runs as, once its graph is partitioned and lowered for this machine."""

import operator
from typing import Any

import torch
from torch import fx

from spectral_compile.lowering.carriers import LOWERED_FROM, to_carriers
from spectral_compile.report.python_code import plain_copy

spectral = torch.ops.spectral


def kernels(part: fx.Graph) -> dict[str, tuple[str, ...]]:
    """For each product of a forward or backward graph, by the name of its `scaled_mm`, the operators that prepare its
    two operands there and the one that multiplies. An operand that was quantised before, in the forward, is carried.
    """
    lowered = plain_copy(part)
    to_carriers(lowered)
    found: dict[str, tuple[str, ...]] = {}
    for node in lowered.nodes:
        if node.target is spectral.scaled_mm.default:  # no lowering on this device, or an operand that is not in FP4
            found[node.name] = (*(_name(_maker(node.args[place])) for place in (0, 3)), "scaled_mm")
        elif node.target is spectral.scaled_grouped_mm.default:
            found[node.name] = (*(_name(_maker(node.args[place])) for place in (0, 3)), "scaled_grouped_mm")
        elif LOWERED_FROM in node.meta:
            a, b = node.args[:2]
            product = f"{_name(node)}, {str(a.meta['val'].dtype).removeprefix('torch.')}"
            found[node.meta[LOWERED_FROM]] = (_name(_maker(a)), _name(_maker(b)), product)
    return found


def _maker(node: Any) -> fx.Node:
    while node.target in (operator.getitem, torch.ops.aten.permute.default):
        node = node.args[0]
    made: fx.Node = node
    return made


def _name(node: fx.Node) -> str:
    return "saved codes" if node.op == "placeholder" else str(node.target).split(".")[1]
