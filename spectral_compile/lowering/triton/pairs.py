"""The last rewrite on a GPU: quantisations of a tensor along both axes become one, that reads it once.

    quantize(x, axis 1), quantize(x, axis 0)  ->  quantize_pair(x)

Activations and gradients are quantised along features for one product and along tokens for another.
"""

import operator
from typing import Any

import torch
from torch import fx

from spectral_compile.formats import FORMATS
from spectral_compile.graph.emit import Emitter
from spectral_compile.lowering.maxima import find_amax_once

spectral = torch.ops.spectral


def pair_quantizers(graph: fx.Graph) -> None:
    """Merge what can be merged, in a graph that Inductor is about to compile; and search largest magnitudes once."""
    quantizers = graph.find_nodes(op="call_function", target=spectral.quantize.default)
    if not quantizers:
        return
    emit = Emitter(graph)
    find_amax_once(emit, quantizers)
    left = [node for node in quantizers if node.args[4] in FORMATS]  # "identity" computes nothing worth a kernel
    for row in [node for node in left if node.args[6] == 1]:
        col = next((node for node in left if node.args[6] == 0 and _can_be_one(row, node)), None)
        if col is not None:
            _merge(emit, row, col)
            left.remove(col)
    graph.eliminate_dead_code()


def _can_be_one(row: fx.Node, col: fx.Node) -> bool:
    """Whether both quantise the same tensor, and there is a place behind the operands of both and before what reads the
    results of either: then neither depends on the other.
    """
    if row.args[0] is not col.args[0] or not (_only_taken_apart(row) and _only_taken_apart(col)):
        return False
    last_operand = max([*row.all_input_nodes, *col.all_input_nodes])  # nodes compare by their place in the graph
    return all(last_operand < user for node in (row, col) for result in node.users for user in result.users)


def _only_taken_apart(node: fx.Node) -> bool:
    return all(user.target is operator.getitem for user in node.users)


def _merge(emit: Emitter, row: fx.Node, col: fx.Node) -> None:
    arguments = (row.args[0], *_side(row), *_side(col))
    pair = emit.call(spectral.quantize_pair.default, arguments, like=row)
    results = emit.outputs(pair, 6)
    for node, first in ((row, 0), (col, 3)):
        for result in list(node.users):
            place: Any = result.args[1]
            result.replace_all_uses_with(results[first + place])


def _side(quantizer: fx.Node) -> tuple[Any, ...]:
    """A quantiser's arguments but for the tensor and the axis, as the pair takes them."""
    arguments: tuple[Any, ...] = quantizer.args
    _, mean, rows, seed, format, scale, _, tile_rows, hadamard, stream, *amax = arguments
    return (mean, rows, seed, format, scale, tile_rows, hadamard, stream, amax[0] if amax else None)
