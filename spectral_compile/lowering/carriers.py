"""The last rewrite on a CPU: products of codes become products on their carrier, and what follows becomes Inductor's.

    scaled_mm(quantize(x), quantize(w))  ->  product(round(x), round(w), scale_x, scale_w, left (outer) right)

Codes that leave the graph or come into it (they are saved for backward) stay codes, and `carry` makes values of them.
The same values are multiplied by the same product and scaled in the same order. What it buys: no packing and unpacking
in between; one search for the largest magnitude for both axes of a tensor, in the read that its mean takes; and values
that several products share.
"""

import operator
from typing import Any

import torch
from torch import fx

from spectral_compile.formats import FORMATS
from spectral_compile.graph.emit import Emitter
from spectral_compile.lowering.maxima import find_amax_once
from spectral_compile.passes.operand import transpose

spectral = torch.ops.spectral

LOWERED_FROM = "spectral_lowered_from"  # in the metadata of a product on its carrier: the name of its scaled_mm

_PRODUCTS = (spectral.product.default, spectral.product_plus_row.default, spectral.product_plus_outer.default)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def to_carriers(graph: fx.Graph) -> None:
    """Rewrite every `scaled_mm` of two FP4 operands on a CPU, in a graph that Inductor is about to compile."""
    products = [node for node in graph.find_nodes(op="call_function", target=spectral.scaled_mm.default) if _fits(node)]
    if not products:
        return
    emit = Emitter(graph)
    quantizers = graph.find_nodes(op="call_function", target=spectral.quantize.default)
    kept = {node for node in quantizers if not _only_multiplied(node, set(products))}
    find_amax_once(emit, quantizers)
    for node in products:
        _lower(emit, node, kept)
    graph.eliminate_dead_code()


def _fits(node: fx.Node) -> bool:
    formats: tuple[Any, ...] = node.args[13:15]
    return all(format in FORMATS for format in formats) and node.meta["val"].device.type == "cpu"


def _only_multiplied(quantizer: fx.Node, products: set[fx.Node]) -> bool:
    """Whether a quantiser's results go into these products and nowhere else, but for being measured on the way."""
    users = [user for result in quantizer.users for user in result.users]
    users += [behind for user in users if _is_measured(user) for behind in user.users]
    return all(user in products or _is_measured(user) for user in users)


def _is_measured(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is spectral.measure.default


def _lower(emit: Emitter, node: fx.Node, kept: set[fx.Node]) -> None:
    """One scaled_mm: [m, n] = A B' * scales + left (outer) right."""
    arguments: tuple[Any, ...] = node.args
    *stored, left, right, m, n, k, a_k_last, b_k_last, a_format, b_format, carrier, out_dtype = arguments
    dtype = _DTYPES[carrier] if out_dtype == torch.bfloat16 else torch.float32  # a product's results are of its type
    a, a_scale = _operand(emit, stored[:3], a_format, (m, k) if a_k_last else (k, m), dtype, kept)
    b, b_scale = _operand(emit, stored[3:], b_format, (n, k) if b_k_last else (k, n), dtype, kept)
    matrices = (transpose(emit, a, not a_k_last), transpose(emit, b, b_k_last))
    term = [factor for factor in (left, right) if factor is not None]
    new = emit.replace(node, _PRODUCTS[len(term)], (*matrices, a_scale, b_scale, *term, out_dtype))
    new.meta[LOWERED_FROM] = node.name


def _operand(
    emit: Emitter, stored: list[Any], format: str, shape: tuple[Any, Any], dtype: torch.dtype, kept: set[fx.Node]
) -> tuple[fx.Node, fx.Node]:
    """What the carrier multiplies, as the codes are stored, and what the product is scaled by."""
    codes, scales, tensor_scale = stored
    measured = _is_measured(tensor_scale)
    quantizer = codes.args[0] if codes.target is operator.getitem else None
    if quantizer is None or quantizer.target is not spectral.quantize.default or quantizer in kept:
        values = emit.call(spectral.carry.default, (codes, scales, format, *shape, dtype), like=codes)
    else:
        arguments = (*quantizer.args[:10], dtype, *quantizer.args[10:])
        values, found = emit.outputs(emit.call(spectral.round.default, arguments, like=quantizer), 2)
        if measured:
            tensor_scale.args = (found, *tensor_scale.args[1:])
        else:
            tensor_scale = found
        values = transpose(emit, values, quantizer.args[6] == 0)
    return values, tensor_scale
