"""Mean removal (Averis): the token mean leaves activations and gradients and comes back as a low-rank term.

    fprop   Y  = (X - 1 x) W' + 1 (x W')
    dgrad   dX = (D - z d) W  + z (d W)                         z: rows of D that are not all zero
    wgrad   dW = (D - 1 d)' (X - 1 x) + sum(D)' x + d' (sum(X) - l x)     l: the number of tokens

x and d are the token means of X and D, but these are exact for any row vectors. `MeanCenter.mode` says what is rounded:

    hp       nothing. The last term of wgrad is zero, as l x = sum(X)
    requant  x and d, before they are taken out; W in x W' and d W
    paper    x and d where they come back, and W there; wgrad is (Q(D - 1 d) + 1 Q(d))' (Q(X - 1 x) + 1 Q(x))

After this pass each centred product reads `spectral::center` operands and is a `spectral::split_mm`; `quantize_fp4`
folds both into its own operators.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import fx

from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.expert_mean import expert_mean
from spectral_compile.passes.operand import behind_transpose, rounded, transpose
from spectral_compile.passes.product import Product, read_product
from spectral_compile.plan import GemmPlan, OperandPlan

aten = torch.ops.aten
prims = torch.ops.prims
spectral = torch.ops.spectral

Term = tuple[fx.Node, fx.Node]  # two vectors, whose outer product is added


def mean_center(emit: Emitter, rows: list[tuple[GemmPlan, Gemm]], seed: fx.Node | None) -> None:
    """Rewrite the products whose plan centres an operand. `rows` pairs each plan row with its product's node."""
    for row, gemm in rows:
        if row.quantized and row.centered and gemm.grouped is None:
            centering = _Centering(emit, row, gemm, seed)
            product = read_product(gemm.node)
            centered = centering.wgrad(product) if row.role == "wgrad" else centering.fprop_or_dgrad(product)
            out_dtype = gemm.node.meta["val"].dtype
            arguments = (centered.a, centered.b, centered.left, centered.right, out_dtype)
            gemm.node = emit.replace(gemm.node, spectral.split_mm.default, arguments)
    expert_mean(emit, rows)


@dataclass
class _Centering:
    """The rewrite of one product."""

    emit: Emitter
    row: GemmPlan
    gemm: Gemm
    seed: fx.Node | None

    def fprop_or_dgrad(self, product: Product) -> Product:
        """The moving operand (activation or gradient) is centred along the product's rows, or columns if it is b."""
        weight_is_b = self.gemm.weight_is_b
        moving, weight = (product.a, product.b) if weight_is_b else (product.b, product.a)
        plan, weight_plan = self._plans(a_first=weight_is_b)
        matrix, transposed = self._by_token(moving, token_axis=0 if weight_is_b else 1)
        if self.row.role == "fprop":
            mean, tokens = self._mean(matrix, self.gemm.node), None
        else:
            mean, tokens, _, _ = self._mean_nonzero(matrix)
        taken, carried = self._taken_and_carried(mean, plan)
        residual = transpose(self.emit, self._call(spectral.center.default, matrix, taken, tokens), transposed)

        if self.row.mean_mode != "hp":
            like, k_axis = self.gemm.like("weight"), 0 if weight_is_b else 1
            by_k = rounded(self.emit, weight_plan, weight, k_axis, like, self.seed)
        else:
            by_k = weight
        product_of_mean = self._row_times_matrix(carried, transpose(self.emit, by_k, not weight_is_b))
        if weight_is_b:
            if product.right is not None:
                product_of_mean = self._call(aten.add.Tensor, product_of_mean, product.right)
            return Product(residual, weight, tokens, product_of_mean)
        # W @ X': the mean runs down the rows of the result, and a bias (along columns) cannot be there as well.
        return Product(weight, residual, product_of_mean, tokens or self._ones(matrix))

    def wgrad(self, product: Product) -> Product:
        gradient_is_a = self.gemm.gradient_is_a
        gradient, activation = (product.a, product.b) if gradient_is_a else (product.b, product.a)
        plan_d, plan_x = self._plans(a_first=gradient_is_a)
        d, d_transposed = self._by_token(gradient, token_axis=1 if gradient_is_a else 0)
        x, x_transposed = self._by_token(activation, token_axis=0 if gradient_is_a else 1)
        taken_d, carried_d, sum_d = self._gradient_means(d, plan_d)
        taken_x, carried_x = self._activation_means(x, plan_x)
        residual_d = d if taken_d is None else self._call(spectral.center.default, d, taken_d, None)
        residual_x = x
        if taken_x is not None:
            forward = self.gemm.like("activation")
            residual_x = self.emit.call(spectral.center.default, (x, taken_x, None), like=forward)

        paper = self.row.mean_mode == "paper"
        tokens = self.emit.size(x, 0)
        terms: list[Term] = []
        if carried_x is not None:
            if paper:
                sum_d = self._sum_of_rounded(residual_d, plan_d)
                sum_d = sum_d if carried_d is None else self._plus(sum_d, carried_d, tokens)
            terms.append((sum_d, carried_x))
        if carried_d is not None and paper:
            terms.append((carried_d, self._sum_of_rounded(residual_x, plan_x)))
        elif carried_d is not None and not (self.row.mean_mode == "hp" and carried_x is not None):
            sum_x = self._call(aten.sum.dim_IntList, self._wide(x), [0])
            terms.append((carried_d, sum_x if carried_x is None else self._plus(sum_x, carried_x, tokens, -1)))

        a, b = transpose(self.emit, residual_d, d_transposed), transpose(self.emit, residual_x, x_transposed)
        if not gradient_is_a:
            a, b, terms = b, a, [(v, u) for u, v in terms]
        return Product(a, b, *self._low_rank(terms))

    def _gradient_means(self, d: fx.Node, plan: OperandPlan) -> tuple[fx.Node | None, fx.Node | None, fx.Node]:
        """What is taken from the gradient, what comes back, and the sum over tokens."""
        _, _, total, common = self._mean_nonzero(d)
        if not plan.centered:
            return None, None, total
        return *self._taken_and_carried(common, plan), total

    def _activation_means(self, x: fx.Node, plan: OperandPlan) -> tuple[fx.Node | None, fx.Node | None]:
        if not plan.centered:
            return None, None
        assert self.gemm.forward is not None
        return self._taken_and_carried(self._mean(x, self.gemm.forward.node), plan)

    def _taken_and_carried(self, mean: fx.Node, plan: OperandPlan) -> tuple[fx.Node, fx.Node]:
        """What leaves the operand and what comes back: the mean, rounded where the mode says so."""
        if self.row.mean_mode == "hp":
            return mean, mean
        like = self.gemm.like(plan.kind)
        vector = dataclasses.replace(plan, tile_rows=1, stochastic=False)
        matrix = self.emit.call(aten.unsqueeze.default, (mean, 0), like=like)
        values = rounded(self.emit, vector, matrix, 1, like, None)
        carried = self.emit.call(aten.squeeze.dim, (values, 0), like=like)
        return (carried if self.row.mean_mode == "requant" else mean), carried

    def _sum_of_rounded(self, residual: fx.Node, plan: OperandPlan) -> fx.Node:
        """The sum over tokens of what wgrad reads of an operand [tokens, features]: fp32 [features]."""
        values = rounded(self.emit, plan, residual, 0, self.gemm.like(plan.kind), self.seed)
        return self._call(aten.sum.dim_IntList, values, [0])

    def _plus(self, total: fx.Node, mean: fx.Node, tokens: int | fx.Node, sign: int = 1) -> fx.Node:
        """total + sign * tokens * mean."""
        of_all = self._call(aten.mul.Tensor, mean, tokens)
        return self._call(aten.add.Tensor if sign > 0 else aten.sub.Tensor, total, of_all)

    def _plans(self, a_first: bool) -> tuple[OperandPlan, OperandPlan]:
        assert self.row.a is not None
        assert self.row.b is not None
        return (self.row.a, self.row.b) if a_first else (self.row.b, self.row.a)

    def _by_token(self, operand: fx.Node, token_axis: int) -> tuple[fx.Node, bool]:
        """An operand as [tokens, features], and whether the operand is the transpose of that. Users may keep their
        activations either way round, so a transpose in the graph alone does not tell which axis the tokens are.
        """
        matrix, transposed = behind_transpose(operand)
        tokens_last = token_axis == 1
        return transpose(self.emit, matrix, transposed != tokens_last), tokens_last

    def _mean(self, x: fx.Node, like: fx.Node) -> fx.Node:
        return self.emit.call(spectral.token_mean.default, (x, self.row.min_rows), like=like)

    def _mean_nonzero(self, d: fx.Node) -> tuple[fx.Node, ...]:
        return self.emit.outputs(self._call(spectral.token_mean_nonzero.default, d, self.row.min_rows), 4)

    def _row_times_matrix(self, row: fx.Node, matrix: fx.Node) -> fx.Node:
        """row [k] fp32 times matrix [k, n] in its own precision, summed in fp32: [n]. Inductor makes one loop of it."""
        column = self._call(aten.unsqueeze.default, row, 1)
        return self._call(aten.sum.dim_IntList, self._call(aten.mul.Tensor, self._wide(matrix), column), [0])

    def _low_rank(self, terms: list[Term]) -> Term:
        """Terms as the vectors, or the matrices [m, r] and [r, n], that `split_mm` takes."""
        if len(terms) == 1:
            return terms[0]
        left = [self._call(aten.unsqueeze.default, u, 1) for u, _ in terms]
        right = [self._call(aten.unsqueeze.default, v, 0) for _, v in terms]
        return self._call(aten.cat.default, left, 1), self._call(aten.cat.default, right, 0)

    def _ones(self, matrix: fx.Node) -> fx.Node:
        """[tokens] fp32, for a matrix [tokens, features]. No full_like: Inductor has no code for what it decomposes."""
        arguments = ([self.emit.size(matrix, 0)], 1.0)
        where = {"device": matrix.meta["val"].device, "dtype": torch.float32, "pin_memory": False}
        return self.emit.call(aten.full.default, arguments, like=self.gemm.node, **where)

    def _wide(self, node: fx.Node) -> fx.Node:
        return self._call(prims.convert_element_type.default, node, torch.float32)

    def _call(self, target: object, *args: object) -> fx.Node:
        return self.emit.call(target, args, like=self.gemm.node)
