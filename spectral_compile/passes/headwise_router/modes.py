"""What a layer becomes: `subtoken`, `bank`, `mask` and `vote`. H heads; x_h, the features' slices; g_h, a head's gates.

subtoken: y[slice h] = sum_e g_he Wd_e[slice h, :] act(Wgu_e[:, slice h] x_h); concatenated. bank: slices to full width,
summed. mask: an expert sees only the slices that are routed to it, sum_e g_e Wd_e act(sum_h [e in top-k of h]
Wgu_e[:, slice h] x_h), g_e the mean of the heads' gates. vote: the mean of the heads' gates, then top-k.
Source: "Multi-Head Attention as a Source of Catastrophic Forgetting in MoE Transformers", whose heads have routers and
experts of their own; here all are slices of the parameters that are there.
"""

import functools
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from spectral_compile.passes.headwise_router.cut import Head, Split
from spectral_compile.passes.headwise_router.flow import name_of, shape, value
from spectral_compile.passes.headwise_router.match import LayerError, Router
from spectral_compile.passes.headwise_router.writer import Writer


@dataclass(frozen=True)
class Rewritten:
    """instead: for nodes of the layer, what their users shall read. heads: the copies that it was made of."""

    instead: dict[fx.Node, fx.Node]
    heads: list[Head]


def subtoken(writer: Writer, router: Router, split: Split) -> Rewritten:
    """H private banks of experts, blocks of the same tensors."""
    heads = _copies(writer, router, split)
    output = writer.call(torch.cat, [head.of[router.found.output] for head in heads], -1)
    return Rewritten({router.found.output: output}, heads)


def bank(writer: Writer, router: Router, split: Split) -> Rewritten:
    """Each slice to full width."""
    heads = _copies(writer, router, replace(split, cut_output=False))
    return Rewritten({router.found.output: _sum(writer, [head.of[router.found.output] for head in heads])}, heads)


def vote(writer: Writer, router: Router, split: Split) -> Rewritten:
    """New weights and indices [T, k] in an unchanged dispatch."""
    found = router.found
    heads = _gates(writer, router, split)
    mean = writer.call(operator.truediv, _sum(writer, [_dense(writer, router, head) for head in heads]), split.heads)
    best = writer.call(torch.topk, mean, router.top_k, -1)
    weights = writer.method("to", writer.call(operator.getitem, best, 0), value(found.weights).dtype)
    return Rewritten({found.weights: weights, found.indices: writer.call(operator.getitem, best, 1)}, heads)


def mask(writer: Writer, router: Router, split: Split) -> Rewritten:
    """Head by head, each to its own experts: the first head that chose an expert carries its gate and all heads' shares
    of its input; for those after it, the gate is zero.
    """
    found = router.found
    heads = _gates(writer, router, split)
    decided = router.flow.after([router.logits])
    outputs = []
    for number, head in enumerate(heads):
        dtype = value(head.of[found.weights]).dtype
        gates, shares, new = [], [], []
        for other in heads:
            same = _same(writer, head.of[found.indices], other.of[found.indices])
            spread = writer.method("unsqueeze", other.of[found.weights], -2)
            gates.append(writer.method("sum", writer.call(operator.mul, same, spread), -1))
            share = writer.method("any", same, -1)
            shares.append(writer.method("to", share, dtype))
            if other in heads[:number]:
                new.append(writer.call(operator.invert, share))
        weights = writer.call(operator.truediv, _sum(writer, gates), split.heads)
        for one in new:
            weights = writer.call(operator.mul, weights, one)
        masked = _Masked(writer, router, split, heads, shares)
        masked.of |= {node: head.of[node] for node in decided if node in head.of}
        masked.of[found.weights] = writer.method("to", weights, dtype)
        masked.run(router.body)
        outputs.append(masked.of[found.output])
    return Rewritten({found.output: _sum(writer, outputs)}, heads)


MODES = {"subtoken": subtoken, "bank": bank, "mask": mask, "vote": vote}


class _Masked(Head):
    """All features, to the experts that one head chose: but each expert is given only the slices routed to it."""

    def __init__(self, writer: Writer, router: Router, split: Split, heads: list[Head], shares: list[fx.Node]) -> None:
        """shares: for each head, whether it goes to the expert in question, [T, k] as numbers."""
        super().__init__(writer, router, replace(split, heads=1, cut_output=False), 0)
        self.narrow.clear()  # all features are here
        self.heads, self.shares = heads, shares

    def product(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> fx.Node:
        """The sum of the heads' products, less those that are not routed to the row's expert."""
        router = self.router
        if router.flow.before([node]) & set(router.weight_of) - {node}:  # reads another product, not features
            return super().product(node, args, kwargs)
        bias = args.pop() if name_of(node) == "linear" and len(args) > 2 else None
        parts = []
        for head, share in zip(self.heads, self.shares, strict=True):
            cut = head.contracted(node, args)
            part = self.writer.node(node.op, node.target, cut, kwargs, like=node)
            parts.append(self.writer.call(operator.mul, part, self._aligned(node, share, part)))
        summed = _sum(self.writer, parts)
        return summed if bias is None else self.writer.call(operator.add, summed, bias)

    def _aligned(self, product: fx.Node, share: fx.Node, part: fx.Node) -> fx.Node:
        """A factor for each row of a product, of one for each choice: it goes the way of the gates."""
        of = {**self.of, self.router.found.weights: share}
        way = _way_of_gates(self.router, product)
        for node in way:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: of.get(n, n))
            of[node] = self.writer.node(node.op, node.target, args, kwargs, like=node)
        rows = of[way[-1]]
        while value(rows).dim() < value(part).dim():  # matrices of one row each
            rows = self.writer.method("unsqueeze", rows, -1)
        return self.writer.method("to", rows, value(part).dtype)


def _way_of_gates(router: Router, product: fx.Node) -> list[fx.Node]:
    """What leads from the gates [T, k] to the factor of a product's results, in order."""
    flow, gates = router.flow, router.found.weights
    for node in flow.sorted(flow.after([product])):
        for one in node.all_input_nodes if name_of(node) in ("mul", "einsum") else ():
            before = flow.before([one])
            rows = shape(one)[:-1] if name_of(node) == "mul" and shape(one)[-1:] == (1,) else shape(one)
            if gates in before and not before & set(router.weight_of) and rows == shape(product)[: len(rows)]:
                return flow.sorted((flow.after([gates]) & before) - {gates})
    raise LayerError("mode 'mask' needs gates that experts' results are multiplied by, row by row")


def _copies(writer: Writer, router: Router, split: Split) -> list[Head]:
    heads = [Head(writer, router, split, number) for number in range(split.heads)]
    for head in heads:
        head.run(router.body)
    return heads


def _gates(writer: Writer, router: Router, split: Split) -> list[Head]:
    upto = router.flow.before([router.found.weights, router.found.indices])
    heads = [Head(writer, router, split, number) for number in range(split.heads)]
    for head in heads:
        head.run([node for node in router.body if node in upto])
    return heads


def _dense(writer: Writer, router: Router, head: Head) -> fx.Node:
    """A head's gates for all experts, [T, E]."""
    weights, indices = head.of[router.found.weights], head.of[router.found.indices]
    nothing = writer.call(torch.zeros_like, head.of[router.logits], dtype=value(weights).dtype)
    return writer.call(torch.scatter, nothing, -1, indices, weights)


def _same(writer: Writer, ours: fx.Node, theirs: fx.Node) -> fx.Node:
    """[T, k, k]: whether our choice is their choice."""
    return writer.call(operator.eq, writer.method("unsqueeze", ours, -1), writer.method("unsqueeze", theirs, -2))


def _sum(writer: Writer, nodes: list[fx.Node]) -> fx.Node:
    return functools.reduce(lambda a, b: writer.call(operator.add, a, b), nodes)
