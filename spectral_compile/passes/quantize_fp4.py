"""Quantisation: both operands become codes and scales, and the product becomes `spectral::scaled_mm`.

Blocks run along the axis that the product contracts. Operands are found behind transposes, so that all products
that read a tensor along the same axis share one quantisation, and a weight in 16 x 16 blocks serves fprop and dgrad.
"""

import torch
from torch import fx

from spectral_compile.formats.nvfp4 import BLOCK
from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.product import Product, behind_transpose, read_product
from spectral_compile.plan import GemmPlan, OperandPlan

spectral = torch.ops.spectral


def quantize_fp4(graph: fx.Graph, rows: list[tuple[GemmPlan, Gemm]], seed: fx.Node | None) -> None:
    """Rewrite the products that the plan quantises. `seed` is the graph's input for stochastic rounding."""
    emit = Emitter(graph)
    for row, gemm in rows:
        if row.quantized:
            product = read_product(gemm.node)
            assert product is not None
            gemm.node = _rewrite(emit, row, gemm, product, seed)


def _rewrite(emit: Emitter, row: GemmPlan, gemm: Gemm, product: Product, seed: fx.Node | None) -> fx.Node:
    assert row.a is not None
    assert row.b is not None
    m, k = _shape(emit, product.a)
    _, n = _shape(emit, product.b)
    a, a_k_last = _quantize(emit, row, row.a, product.a, 1, gemm, seed)
    b, b_k_last = _quantize(emit, row, row.b, product.b, 0, gemm, seed)
    out_dtype = gemm.node.meta["val"].dtype
    arguments = (*a, *b, product.left, product.right, m, n, k, a_k_last, b_k_last, row.format, row.carrier, out_dtype)
    return emit.replace(gemm.node, spectral.scaled_mm.default, arguments)


def _shape(emit: Emitter, operand: fx.Node) -> tuple[int | fx.Node, int | fx.Node]:
    """The extents of an operand, read off a tensor that stays: the centred one is folded into its quantisation."""
    matrix, transposed = behind_transpose(operand)
    if matrix.target is spectral.center.default:
        matrix = matrix.args[0]  # type: ignore[assignment]
    rows, cols = emit.size(matrix, 0), emit.size(matrix, 1)
    return (cols, rows) if transposed else (rows, cols)


def _quantize(
    emit: Emitter, row: GemmPlan, plan: OperandPlan, operand: fx.Node, k_axis: int, gemm: Gemm, seed: fx.Node | None
) -> tuple[tuple[fx.Node, ...], bool]:
    """Codes, scales and amax of an operand that is contracted along `k_axis`, and whether k is stored last."""
    matrix, transposed = behind_transpose(operand)
    k_axis = 1 - k_axis if transposed else k_axis
    # 16 x 16 blocks look the same along both axes: one set of codes, always stored as the weight lies.
    axis = 1 if plan.tile_rows == BLOCK else k_axis
    mean = tokens = None
    if matrix.target is spectral.center.default:
        matrix, mean, tokens = matrix.args  # type: ignore[assignment]
    # What is computed from forward values belongs to the forward, even where only a wgrad reads it.
    like = gemm.node if plan.kind == "gradient" or gemm.forward is None else gemm.forward.node
    own_seed = seed if plan.stochastic else None
    if plan.stochastic and seed is None:
        raise AssertionError(f"{row.node} is to be rounded stochastically and the graph has no seed input")
    what = (matrix, mean, tokens, own_seed, row.format, axis, plan.tile_rows)
    node = emit.call(spectral.quantize.default, (*what, plan.stream), like=like, share=what)
    return emit.outputs(node, 3), axis == k_axis
