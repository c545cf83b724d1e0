"""Mean removal (Averis): the token mean leaves activations and gradients and comes back in high precision.

    fprop   Y  = (X - 1 muX) W' + 1 (muX W')
    dgrad   dX = (D - z muD) W  + z (muD W)             z: rows of D that are not all zero
    wgrad   dW = (D - 1 mu)' (X - 1 muX) + sum(D)' muX  mu: muD, or 0 where a row of D is all zero

All three are exact before anything is rounded: dgrad and fprop for any row vector, wgrad because 1'(X - 1 muX) = 0,
whatever is taken from D. After this pass each centred product reads `spectral::center` operands and is a
`spectral::split_mm`; `quantize_fp4` folds both into its own operators.
"""

import torch
from torch import fx

from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.passes.product import Product, behind_transpose, read_product
from spectral_compile.plan import GemmPlan

aten = torch.ops.aten
prims = torch.ops.prims
spectral = torch.ops.spectral


def mean_center(graph: fx.Graph, rows: list[tuple[GemmPlan, Gemm]]) -> None:
    """Rewrite the products whose plan centres an operand. `rows` pairs each plan row with its product's node."""
    emit = Emitter(graph)
    for row, gemm in rows:
        if row.quantized and row.centered:
            product = read_product(gemm.node)
            assert product is not None
            centered = (_wgrad if row.role == "wgrad" else _fprop_or_dgrad)(emit, row, gemm, product)
            out_dtype = gemm.node.meta["val"].dtype
            arguments = (centered.a, centered.b, centered.left, centered.right, out_dtype)
            gemm.node = emit.replace(gemm.node, spectral.split_mm.default, arguments)


def _fprop_or_dgrad(emit: Emitter, row: GemmPlan, gemm: Gemm, product: Product) -> Product:
    """The moving operand (activation or gradient) is centred along the product's rows, or columns if it is b."""
    moving, weight = (product.a, product.b) if gemm.weight_is_b else (product.b, product.a)
    matrix, transposed = _by_token(emit, moving, token_axis=0 if gemm.weight_is_b else 1)
    if row.role == "fprop":
        mean, tokens = _mean(emit, matrix, row, gemm), None
    else:
        mean, tokens, _ = _mean_nonzero(emit, matrix, row, gemm)
    residual = _transpose(emit, emit.call(spectral.center.default, (matrix, mean, tokens), like=gemm.node), transposed)
    if gemm.weight_is_b:
        right = _row_times_matrix(emit, mean, weight, gemm.node)
        if product.right is not None:
            right = emit.call(aten.add.Tensor, (right, product.right), like=gemm.node)
        return Product(residual, weight, tokens, right)
    # W @ X': the mean runs down the rows of the result, and a bias (along columns) cannot be there as well.
    left = _row_times_matrix(emit, mean, _transpose(emit, weight, True), gemm.node)
    return Product(weight, residual, left, tokens or _ones(emit, matrix, gemm.node))


def _wgrad(emit: Emitter, row: GemmPlan, gemm: Gemm, product: Product) -> Product:
    gradient, activation = (product.a, product.b) if gemm.gradient_is_a else (product.b, product.a)
    d, d_transposed = _by_token(emit, gradient, token_axis=1 if gemm.gradient_is_a else 0)
    x, x_transposed = _by_token(emit, activation, token_axis=0 if gemm.gradient_is_a else 1)
    plan_d, plan_x = (row.a, row.b) if gemm.gradient_is_a else (row.b, row.a)
    assert plan_d is not None
    assert plan_x is not None
    assert gemm.forward is not None

    mean_d, tokens, sum_d = _mean_nonzero(emit, d, row, gemm)
    if plan_d.centered:
        all_count = emit.call(aten.amin.default, (tokens, [0]), like=gemm.node)  # 0 where a row is all zero, else 1
        safe_mean = emit.call(aten.mul.Tensor, (mean_d, all_count), like=gemm.node)
        d = emit.call(spectral.center.default, (d, safe_mean, None), like=gemm.node)
    if plan_x.centered:
        mean_x = _mean(emit, x, row, gemm.forward)
        x = emit.call(spectral.center.default, (x, mean_x, None), like=gemm.forward.node)
        of_d, of_x = sum_d, mean_x
    else:  # X' (D - 1 mu) lacks sum(X)' mu
        wide = emit.call(prims.convert_element_type.default, (x, torch.float32), like=gemm.node)
        of_d, of_x = safe_mean, emit.call(aten.sum.dim_IntList, (wide, [0]), like=gemm.node)

    d, x = _transpose(emit, d, d_transposed), _transpose(emit, x, x_transposed)
    return Product(d, x, of_d, of_x) if gemm.gradient_is_a else Product(x, d, of_x, of_d)


def _by_token(emit: Emitter, operand: fx.Node, token_axis: int) -> tuple[fx.Node, bool]:
    """An operand as [tokens, features], and whether the operand is the transpose of that. Users may keep their
    activations either way round, so a transpose in the graph alone does not tell which axis the tokens are.
    """
    matrix, transposed = behind_transpose(operand)
    tokens_last = token_axis == 1
    return _transpose(emit, matrix, transposed != tokens_last), tokens_last


def _mean(emit: Emitter, x: fx.Node, row: GemmPlan, gemm: Gemm) -> fx.Node:
    return emit.call(spectral.token_mean.default, (x, row.min_rows), like=gemm.node)


def _mean_nonzero(emit: Emitter, d: fx.Node, row: GemmPlan, gemm: Gemm) -> tuple[fx.Node, ...]:
    node = emit.call(spectral.token_mean_nonzero.default, (d, row.min_rows), like=gemm.node)
    return emit.outputs(node, 3)


def _row_times_matrix(emit: Emitter, row: fx.Node, matrix: fx.Node, like: fx.Node) -> fx.Node:
    """row [k] fp32 times matrix [k, n] in its own precision, summed in fp32: [n]. Inductor makes one loop of it."""
    wide = emit.call(prims.convert_element_type.default, (matrix, torch.float32), like=like)
    column = emit.call(aten.unsqueeze.default, (row, 1), like=like)
    return emit.call(aten.sum.dim_IntList, (emit.call(aten.mul.Tensor, (wide, column), like=like), [0]), like=like)


def _ones(emit: Emitter, matrix: fx.Node, like: fx.Node) -> fx.Node:
    """[tokens] fp32, for a matrix [tokens, features]. No full_like: Inductor has no code for what it decomposes."""
    arguments = ([emit.size(matrix, 0)], 1.0)
    device = matrix.meta["val"].device
    return emit.call(aten.full.default, arguments, like=like, dtype=torch.float32, device=device, pin_memory=False)


def _transpose(emit: Emitter, node: fx.Node, wanted: bool) -> fx.Node:
    return emit.call(aten.permute.default, (node, [1, 0]), like=node) if wanted else node
