"""Balance losses: of each head's choices, where they were of the whole router's.

Such a loss is what the logits lead to beside the layer: a subgraph from the logits of all layers to one number. It is
copied for each head, reading that head's logits, and the copies' mean takes its place: rows, masks and counts are as
many as before, so no factor of H or H^2 comes in.
"""

from collections.abc import Sequence

import torch
from torch import fx

from spectral_compile.passes.headwise_router.families import PRODUCTS
from spectral_compile.passes.headwise_router.flow import Flow, name_of, shape, value
from spectral_compile.passes.headwise_router.match import Router
from spectral_compile.passes.headwise_router.modes import Rewritten
from spectral_compile.passes.headwise_router.rewrite import replace_uses
from spectral_compile.passes.headwise_router.writer import Writer


def balance(graph: fx.Graph, rewritten: Sequence[tuple[Router, Rewritten]]) -> None:
    """Make balance losses those of the heads. Layers must have as many heads each."""
    flow = Flow(graph)
    sources = {router.logits: [head.of[router.logits] for head in new.heads] for router, new in rewritten}
    sources = {logits: heads for logits, heads in sources.items() if logits in flow.order}
    after = flow.after(sources)
    losses = [node for node in flow.sorted(after) if _is_number(node) and not _reads_number(node, after)]
    for loss in losses:
        region = [node for node in flow.sorted(after & flow.before([loss])) if node not in sources]
        if any(name_of(node) in PRODUCTS for node in region):
            continue  # what the model computes of its logits, not a loss beside it
        latest = max((loss, *(one for heads in sources.values() for one in heads)), key=flow.order.__getitem__)
        writer = Writer(graph, latest, loss)
        by_head = zip(*sources.values(), strict=True)
        copies = [_copy(writer, region, dict(zip(sources, logits, strict=True)))[loss] for logits in by_head]
        mean = copies[0]
        if len(copies) > 1:
            mean = writer.method("mean", writer.call(torch.stack, copies), 0)
        replace_uses({loss: mean}, writer, flow, but={*writer.written, *region})
        for node in reversed(region):
            if not node.users:
                graph.erase_node(node)
        flow = Flow(graph)


def _copy(writer: Writer, region: list[fx.Node], of: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    of = dict(of)
    for node in region:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: of.get(n, n))
        of[node] = writer.node(node.op, node.target, args, kwargs, like=node)
    return of


def _is_number(node: fx.Node) -> bool:
    return isinstance(value(node), torch.Tensor) and shape(node) == () and value(node).dtype.is_floating_point


def _reads_number(node: fx.Node, among: set[fx.Node]) -> bool:
    return any(_is_number(one) and one in among for one in node.all_input_nodes)
