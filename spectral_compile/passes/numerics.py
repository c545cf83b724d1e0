"""Measuring while training: each operand of a quantised product where it is quantised, and on request each product.

    scaled_mm(codes, scales, s, ...)  ->  scaled_mm(codes, scales, measure(s, x, ...), ...)

A measurement hangs on a number that the product needs, so it lands in the graph, forward or backward, where the operand
is quantised, and nothing else moves. A comparison hangs on the product, of which it makes a copy.
"""

from collections import Counter
from typing import Any

import torch
from torch import fx

from spectral_compile.graph.emit import Emitter
from spectral_compile.graph.provenance import Gemm
from spectral_compile.measuring.sessions import where
from spectral_compile.plan import GemmPlan, OperandPlan

spectral = torch.ops.spectral

_A, _B, _LEFT, _A_K_LAST = 0, 3, 6, 11  # places in scaled_mm's arguments


def numerics(emit: Emitter, rows: list[tuple[GemmPlan, Gemm]], step: fx.Node | None, cosine: bool) -> None:
    """Measure the products that were quantised. `step` is the graph's input that tells which calls are measured."""
    names: dict[fx.Node, list[str]] = {}  # of a measurement: products may share an operand
    layers = _layers(rows)
    for row, gemm in rows:
        if not row.quantized or gemm.grouped is not None:  # an expert's operand is a part of a tensor: not looked at
            continue
        if step is None:
            raise AssertionError("the graph has no input that tells which calls are measured")
        layer = layers[gemm.forward or gemm]
        arguments = list(gemm.node.args)
        quantizers: list[Any] = [arguments[place].args[0] for place in (_A, _B)]  # type: ignore[union-attr]
        k_lasts = arguments[_A_K_LAST : _A_K_LAST + 2]
        for place, quantizer, operand, k_last in zip((_A, _B), quantizers, (row.a, row.b), k_lasts, strict=True):
            assert operand is not None
            if operand.format == "identity":
                continue
            scale: Any = arguments[place + 2]
            what = (scale, *quantizer.args[:10], _token_axis(row, operand, quantizer, bool(k_last)), step)
            node = emit.call(spectral.measure.default, (*what, []), like=scale, share=what)
            names.setdefault(node, []).append(where(layer, row.role, operand.kind))
            node.args = (*what, names[node])
            arguments[place + 2] = node
        gemm.node.args = tuple(arguments)
        if cosine:
            _compare(emit, gemm.node, quantizers, step, where(layer, row.role, "product"))


def _layers(rows: list[tuple[GemmPlan, Gemm]]) -> dict[Gemm, str]:
    """The layer of each forward product, told apart where a graph calls it more than once."""
    calls: Counter[str] = Counter()
    found: dict[Gemm, str] = {}
    for row, gemm in rows:
        if gemm.forward is None:
            calls[row.layer] += 1
            found[gemm] = row.layer if calls[row.layer] == 1 else f"{row.layer} (call {calls[row.layer]})"
    return found


def _token_axis(row: GemmPlan, operand: OperandPlan, quantizer: fx.Node, k_last: bool) -> int:
    """Along which axis of what is quantised the tokens lie, -1 for a weight: wgrad is contracted along them."""
    if operand.kind == "weight":
        return -1
    contracted = quantizer.args[6] == 1 if k_last else quantizer.args[6] == 0
    return int(contracted == (row.role == "wgrad"))


def _compare(emit: Emitter, product: fx.Node, quantizers: list[Any], step: fx.Node, name: str) -> None:
    arguments: tuple[Any, ...] = product.args
    operands: list[Any] = []
    for quantizer, k_last in zip(quantizers, arguments[_A_K_LAST : _A_K_LAST + 2], strict=True):
        # Stored with the block axis last: transposed for axis 0; and the product takes it as stored or transposed.
        operands += [*quantizer.args[:3], (quantizer.args[6] == 0) == k_last]
    what = (product, *operands, *arguments[_LEFT : _LEFT + 2], step, name)
    node = emit.call(spectral.compare.default, what, like=product)
    product.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
