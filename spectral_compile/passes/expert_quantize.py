"""Quantisation of experts' products: tokens and stacks become codes, the product `spectral::scaled_grouped_mm`.

As `quantize_fp4.py` does for linears: blocks run along the axis that is contracted, products that read a tensor along
the same axis share one quantisation, and a stack in square blocks serves fprop and dgrad. In wgrad that axis is an
expert's tokens, and blocks begin with each expert's first.
"""

import torch
from torch import fx

from spectral_compile.formats import FORMATS
from spectral_compile.formats.hadamard import SIZE as HADAMARD_SIZE
from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.expert_product import ExpertProduct, behind_swap, put, read_expert_product
from spectral_compile.plan import GemmPlan, OperandPlan

spectral = torch.ops.spectral

Stored = tuple[fx.Node, ...]  # codes, block scales, tensor scales


def expert_quantize(emit: Emitter, rows: list[tuple[GemmPlan, Gemm]], seed: fx.Node | None) -> None:
    """Rewrite the products with stacks of weights that the plan quantises."""
    for row, gemm in rows:
        if row.quantized and gemm.grouped is not None:
            product = read_expert_product(emit, gemm)
            arguments = _arguments(emit, row, gemm, product, seed)
            put(emit, gemm, spectral.scaled_grouped_mm.default, arguments)


def _arguments(
    emit: Emitter, row: GemmPlan, gemm: Gemm, product: ExpertProduct, seed: fx.Node | None
) -> tuple[object, ...]:
    assert row.a is not None
    assert row.b is not None
    assert gemm.grouped is not None
    m: int | fx.Node
    k: int | fx.Node
    of_a, n = emit.size(_held(product.a), 1), emit.size(_held(product.b), -1)
    if gemm.grouped.ragged_k:
        # A transform fills the last 16 of each expert's tokens; without it the tokens alone are read.
        whole = HADAMARD_SIZE if gemm.transformed else 1
        m, k, b_k_last = of_a, whole, True
        block = max([whole, *(FORMATS[plan.format].block for plan in (row.a, row.b) if plan.format in FORMATS)])
        a, b = (
            _tokens(emit, plan, operand, product.offsets, 0, block, gemm, seed)
            for plan, operand in ((row.a, product.a), (row.b, product.b))
        )
    else:
        m, k, block = emit.size(_held(product.a), 0), of_a, 0
        if gemm.transformed:
            k = emit.round_up(k, HADAMARD_SIZE, like=gemm.node)
        a = _tokens(emit, row.a, product.a, product.offsets, 1, 1, gemm, seed)
        b, b_k_last = _stack(emit, row.b, product.b, gemm, seed)
    how = (m, n, k, block, b_k_last, row.a.format, row.b.format, row.carrier, gemm.node.meta["val"].dtype)
    return (*a, *b, product.offsets, product.left, product.right, *how)


def _tokens(
    emit: Emitter,
    plan: OperandPlan,
    operand: fx.Node,
    offsets: fx.Node,
    axis: int,
    block: int,
    gemm: Gemm,
    seed: fx.Node | None,
) -> Stored:
    """Codes, block scales and tensor scales of an operand [tokens, features], less what was centred."""
    mean = rows = None
    if operand.target is spectral.grouped_center.default:
        operand, mean, rows, _ = operand.args  # type: ignore[assignment]
    what = (operand, mean, rows, _own(seed, plan), offsets, plan.format, plan.scale, axis, plan.tile_rows)
    what = (*what, gemm.transformed)  # type: ignore[assignment]
    arguments = (*what, plan.stream, block)
    node = emit.call(spectral.grouped_quantize.default, arguments, like=gemm.like(plan.kind), share=(*what, block))
    return emit.outputs(node, 3)


def _stack(emit: Emitter, plan: OperandPlan, operand: fx.Node, gemm: Gemm, seed: fx.Node | None) -> tuple[Stored, bool]:
    """Of a stack [experts, k, n], and whether k is stored last."""
    stack, swapped = behind_swap(operand)
    k_axis = 1 if swapped else 0
    # Square blocks look the same along both axes: one set of codes, always stored as the weights lie.
    axis = 1 if plan.tile_rows > 1 and not gemm.transformed else k_axis
    what = (stack, _own(seed, plan), plan.format, plan.scale, axis, plan.tile_rows, gemm.transformed)
    like = gemm.like(plan.kind)
    node = emit.call(spectral.stack_quantize.default, (*what, plan.stream), like=like, share=what)
    return emit.outputs(node, 3), axis == k_axis


def _own(seed: fx.Node | None, plan: OperandPlan) -> fx.Node | None:
    if not plan.stochastic:
        return None
    if seed is None:
        raise AssertionError(f"a {plan.kind} is to be rounded stochastically and the graph has no seed input")
    return seed


def _held(operand: fx.Node) -> fx.Node:
    """What stays in the graph of an operand: its centring is folded into the quantiser."""
    return operand.args[0] if operand.target is spectral.grouped_center.default else operand  # type: ignore[return-value]
