"""Quantisation: both operands become codes and scales, and the product becomes `spectral::scaled_mm`.

Blocks run along the axis that the product contracts. Products that read a tensor along the same axis share one
quantisation, and a weight in square blocks serves fprop and dgrad.
"""

import torch
from torch import fx

from spectral_compile.formats.hadamard import SIZE as HADAMARD_SIZE
from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.expert_quantize import expert_quantize
from spectral_compile.passes.operand import behind_transpose, quantize
from spectral_compile.passes.product import Product, read_product
from spectral_compile.plan import GemmPlan

spectral = torch.ops.spectral


def quantize_fp4(emit: Emitter, rows: list[tuple[GemmPlan, Gemm]], seed: fx.Node | None) -> None:
    """Rewrite the products that the plan quantises. `seed` is the graph's input for stochastic rounding."""
    for row, gemm in rows:
        if row.quantized and gemm.grouped is None:
            gemm.node = _rewrite(emit, row, gemm, read_product(gemm.node), seed)
    expert_quantize(emit, rows, seed)


def _rewrite(emit: Emitter, row: GemmPlan, gemm: Gemm, product: Product, seed: fx.Node | None) -> fx.Node:
    assert row.a is not None
    assert row.b is not None
    m, k = _shape(emit, product.a)
    _, n = _shape(emit, product.b)
    if row.hadamard:
        k = emit.round_up(k, HADAMARD_SIZE, like=gemm.node)  # what the transform padded is not zero any more
    a, a_k_last = quantize(emit, row.a, product.a, 1, gemm.like(row.a.kind), seed)
    b, b_k_last = quantize(emit, row.b, product.b, 0, gemm.like(row.b.kind), seed)
    shape, formats = (m, n, k, a_k_last, b_k_last), (row.a.format, row.b.format)
    arguments = (*a, *b, product.left, product.right, *shape, *formats, row.carrier, gemm.node.meta["val"].dtype)
    return emit.replace(gemm.node, spectral.scaled_mm.default, arguments)


def _shape(emit: Emitter, operand: fx.Node) -> tuple[int | fx.Node, int | fx.Node]:
    """The extents of an operand, read off a tensor that stays: what else there is is folded into the quantiser."""
    matrix, transposed = behind_transpose(operand)
    while matrix.target in (spectral.hadamard.default, spectral.center.default):
        matrix = matrix.args[0]  # type: ignore[assignment]
    rows, cols = emit.size(matrix, 0), emit.size(matrix, 1)
    return (cols, rows) if transposed else (rows, cols)
