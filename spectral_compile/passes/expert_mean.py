"""Mean removal (Averis) from experts' operands, each expert's mean over its own tokens, in mode "hp".

As `mean_center.py` has it, for every expert e with the tokens that it sees:

    fprop   Y  = (X - x_e) W_e' + x_e W_e'
    dgrad   dX = (D - z d_e) W_e + z (d_e W_e)               z: rows of D that are not all zero
    wgrad   dW_e = (D - d_e)' (X - x_e) + sum_e(D)' x_e      or d_e' sum_e(X), where only the gradient is centred

After it each centred product reads `spectral::grouped_center` operands and is a `spectral::grouped_split_mm`.
"""

from dataclasses import dataclass

import torch
from torch import fx

from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.expert_product import ExpertProduct, put, read_expert_product
from spectral_compile.plan import GemmPlan, OperandPlan

aten = torch.ops.aten
prims = torch.ops.prims
spectral = torch.ops.spectral


def expert_mean(emit: Emitter, rows: list[tuple[GemmPlan, Gemm]]) -> None:
    """Rewrite the products with stacks of weights whose plan centres an operand."""
    for row, gemm in rows:
        if row.quantized and row.centered and gemm.grouped is not None:
            product = read_expert_product(emit, gemm)
            centering = _Centering(emit, row, gemm, product.offsets)
            product = centering.wgrad(product) if row.role == "wgrad" else centering.fprop_or_dgrad(product)
            how = (gemm.grouped.ragged_k, gemm.node.meta["val"].dtype)
            operands = (product.a, product.b, product.offsets, product.left, product.right)
            put(emit, gemm, spectral.grouped_split_mm.default, (*operands, *how))


@dataclass(frozen=True)
class _Centering:
    """The rewrite of one product."""

    emit: Emitter
    row: GemmPlan
    gemm: Gemm
    offsets: fx.Node

    def fprop_or_dgrad(self, product: ExpertProduct) -> ExpertProduct:
        if self.row.role == "fprop":
            mean, tokens = self._mean(product.a), None
        else:
            mean, tokens, _, _ = self._mean_nonzero(product.a, self.gemm.node)
        residual = self._call(spectral.grouped_center.default, product.a, mean, tokens, self.offsets)
        # [experts, n]: each expert's mean times its weight, in fp32. Inductor makes one loop of it.
        column = self._call(aten.unsqueeze.default, mean, 2)
        wide = self._call(prims.convert_element_type.default, product.b, torch.float32)
        of_mean = self._call(aten.sum.dim_IntList, self._call(aten.mul.Tensor, wide, column), [1])
        return ExpertProduct(residual, product.b, self.offsets, tokens, of_mean)

    def wgrad(self, product: ExpertProduct) -> ExpertProduct:
        gradient_is_a = self.gemm.gradient_is_a
        d, x = (product.a, product.b) if gradient_is_a else (product.b, product.a)
        plan_d, plan_x = (self.row.a, self.row.b) if gradient_is_a else (self.row.b, self.row.a)
        _, _, sum_d, common = self._mean_nonzero(d, self.gemm.node)
        residual_d, residual_x = d, x
        if _is_centered(plan_d):
            residual_d = self._call(spectral.grouped_center.default, d, common, None, self.offsets)
        if _is_centered(plan_x):
            forward = self.gemm.like("activation")
            mean = self._mean(x)
            arguments = (x, mean, None, self.offsets)
            residual_x = self.emit.call(spectral.grouped_center.default, arguments, like=forward)
            of_d, of_x = sum_d, mean  # what the gradient's mean adds vanishes: residuals of X add up to zero
        else:
            of_d, of_x = common, self._mean_nonzero(x, self.gemm.node)[2]
        if gradient_is_a:
            return ExpertProduct(residual_d, residual_x, self.offsets, of_d, of_x)
        return ExpertProduct(residual_x, residual_d, self.offsets, of_x, of_d)

    def _mean(self, x: fx.Node) -> fx.Node:
        like = (self.gemm.forward or self.gemm).node
        arguments = (x, self.offsets, self.row.min_rows)
        return self.emit.call(spectral.grouped_token_mean.default, arguments, like=like)

    def _mean_nonzero(self, d: fx.Node, like: fx.Node) -> tuple[fx.Node, ...]:
        arguments = (d, self.offsets, self.row.min_rows)
        found = self.emit.call(spectral.grouped_token_mean_nonzero.default, arguments, like=like)
        return self.emit.outputs(found, 4)

    def _call(self, target: object, *args: object) -> fx.Node:
        return self.emit.call(target, args, like=self.gemm.node)


def _is_centered(plan: OperandPlan | None) -> bool:
    return plan is not None and plan.centered
