"""Emitting the quantisation of one operand: found behind transposes, so that products share it."""

import torch
from torch import fx

from spectral_compile.graph.dataflow import is_transpose
from spectral_compile.graph.emit import Emitter
from spectral_compile.plan import OperandPlan

aten = torch.ops.aten
spectral = torch.ops.spectral


def behind_transpose(node: fx.Node) -> tuple[fx.Node, bool]:
    """The matrix behind any number of transposes, and whether an odd number stood before it."""
    transposed = False
    while is_transpose(node):
        node, transposed = node.args[0], not transposed  # type: ignore[assignment]
    return node, transposed


def transpose(emit: Emitter, node: fx.Node, wanted: bool) -> fx.Node:
    """The node, or its transpose where that is wanted."""
    return emit.call(aten.permute.default, (node, [1, 0]), like=node) if wanted else node


def quantize(
    emit: Emitter, plan: OperandPlan, operand: fx.Node, k_axis: int, like: fx.Node, seed: fx.Node | None
) -> tuple[tuple[fx.Node, ...], bool]:
    """Codes, block scales and tensor scale of an operand that is contracted along `k_axis`, and whether k is stored
    last. What `center` and `hadamard` did to the operand is done by the quantiser instead.
    """
    matrix, transposed = behind_transpose(operand)
    k_axis = 1 - k_axis if transposed else k_axis
    hadamard = matrix.target is spectral.hadamard.default
    if hadamard:
        matrix = matrix.args[0]  # type: ignore[assignment]
    mean = tokens = None
    if matrix.target is spectral.center.default:
        matrix, mean, tokens = matrix.args  # type: ignore[assignment]
    # Square blocks look the same along both axes: one set of codes, always stored as the weight lies.
    axis = 1 if plan.tile_rows > 1 and not hadamard else k_axis
    if plan.stochastic and seed is None:
        raise AssertionError(f"{operand.name} is to be rounded stochastically and the graph has no seed input")
    own_seed = seed if plan.stochastic else None
    what = (matrix, mean, tokens, own_seed, plan.format, plan.scale, axis, plan.tile_rows, hadamard)
    node = emit.call(spectral.quantize.default, (*what, plan.stream), like=like, share=what)
    return emit.outputs(node, 3), axis == k_axis


def rounded(
    emit: Emitter, plan: OperandPlan, operand: fx.Node, k_axis: int, like: fx.Node, seed: fx.Node | None
) -> fx.Node:
    """The operand's values after rounding, fp32, as the operand lies."""
    codes, k_last = quantize(emit, plan, operand, k_axis, like, seed)
    extents = [emit.size(operand, 0), emit.size(operand, 1)]
    k_first = k_axis == 0
    stored = extents if k_last != k_first else extents[::-1]
    values = emit.call(spectral.dequantize.default, (*codes, plan.format, *stored), like=like)
    return transpose(emit, values, k_last == k_first)
