"""The random Hadamard transform: both operands of a product are transformed along the axis that it contracts.

    a @ b = (a T') (T b),   T orthogonal, in groups of 16

Exact before anything is rounded; an outlier, which would set the scale of its block, is spread over 16 values. After
this pass each such product reads `spectral::hadamard` operands and is a `spectral::split_mm`; `quantize_fp4` folds the
transforms into the quantisers.
"""

import torch
from torch import fx

from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.operand import behind_transpose, transpose
from spectral_compile.passes.product import read_product
from spectral_compile.plan import GemmPlan, OperandPlan

spectral = torch.ops.spectral


def hadamard(emit: Emitter, rows: list[tuple[GemmPlan, Gemm]]) -> None:
    """Rewrite the products whose plan transforms the operands. `rows` pairs each plan row with its product's node."""
    for row, gemm in rows:
        if row.quantized and row.hadamard and gemm.grouped is not None:
            # Groups of 16 tokens begin with an expert's first: the quantiser knows where, no operator before it does.
            gemm.transformed = True
        elif row.quantized and row.hadamard:
            product = read_product(gemm.node)
            a = _transformed(emit, row.a, product.a, 1, gemm)
            b = _transformed(emit, row.b, product.b, 0, gemm)
            arguments = (a, b, product.left, product.right, gemm.node.meta["val"].dtype)
            gemm.node = emit.replace(gemm.node, spectral.split_mm.default, arguments)


def _transformed(emit: Emitter, plan: OperandPlan | None, operand: fx.Node, k_axis: int, gemm: Gemm) -> fx.Node:
    assert plan is not None
    matrix, transposed = behind_transpose(operand)
    axis = 1 - k_axis if transposed else k_axis
    like = gemm.like(plan.kind)
    return transpose(emit, emit.call(spectral.hadamard.default, (matrix, axis), like=like), transposed)
