"""Output heads and routers, told by what the graph does with a linear's result, not by the layer's name alone.

A head's logits go into a loss, a router's are ranked by top-k. The result of each fprop is followed through views,
casts, elementwise operations and reductions, as long as no other product's result mixes in.
"""

import re

import torch
from torch import fx

from spectral_compile._torch import (
    OpOverload,
    differentiated_outputs,
    returned_by_forward,
    statically_known_true,
)
from spectral_compile.graph.dataflow import CASTS, VIEWS
from spectral_compile.graph.provenance import Gemm, Provenance

aten = torch.ops.aten

_LOSSES = ("log_softmax", "nll_loss", "cross_entropy", "mse_loss", "l1_loss", "huber_loss", "kl_div", "soft_margin")
LOSS_OPS = (*_LOSSES, "binary_cross_entropy", "hinge_embedding", "margin_ranking", "logsumexp")
RANKING = ("topk", "sort", "argsort", "kthvalue")
TOP_ONE = ("argmax", "max.dim")  # ranks a top-1 router's experts, and counts a head's right answers
_REDUCTIONS = ("sum", "mean", "amax", "amin", "max", "min", "var", "std", "prod", "softmax", "logsumexp", "norm")
_SELECTIONS = ("index", "gather", "embedding_renorm", "where", "masked_fill", "split", "chunk", "unbind", "getitem")
HEAD_NAMES = re.compile(r"(^|\.)(lm_head|head|output|embed_out|unembed|classifier|score|logits?)$")

_MIXED = "several products, or none that is a linear"


def heads_and_routers(graph: fx.Graph, provenance: Provenance) -> dict[Gemm, str]:
    """The fprops that are output heads or routers, each with the reason that the user will read."""
    carries = _results_of(graph, provenance)
    found: dict[Gemm, str] = {}
    results = [(node, gemm) for node, gemm in carries.items() if isinstance(gemm, Gemm) and gemm.node is not node]
    for node, gemm in results:
        if _matches(node, RANKING):
            found.setdefault(gemm, "router: its result is ranked (top-k)")
    lead_to_loss = _ancestors(differentiated_outputs(graph))  # a figure for the log does not
    for node, gemm in results:
        if node in lead_to_loss and (_matches(node, LOSS_OPS) or _is_scalar_reduction(node)):
            found.setdefault(gemm, "output head: its result goes into the loss")
    for node, gemm in results:
        if _matches(node, TOP_ONE):
            found.setdefault(gemm, "router: its result is ranked (top-1)")
    returned = {carries.get(node) for node in returned_by_forward(graph)}
    for gemm in provenance.gemms:
        if gemm in returned and gemm not in found and (reason := _looks_like_a_head(graph, gemm, provenance)):
            found[gemm] = reason
    return found


def _results_of(graph: fx.Graph, provenance: Provenance) -> dict[fx.Node, Gemm | str]:
    """For each forward node, the one fprop whose result it carries, or _MIXED; inputs carry nothing."""
    fprops = {gemm.node: gemm for gemm in provenance.gemms if gemm.role == "fprop"}
    carries: dict[fx.Node, Gemm | str] = {}
    for node in graph.nodes:
        if provenance.origin[node].gradient or node.op in ("placeholder", "output"):
            continue
        if node in fprops:
            carries[node] = fprops[node]
            continue
        sources = {carries[argument] for argument in node.all_input_nodes if argument in carries}
        if sources:
            carries[node] = sources.pop() if len(sources) == 1 and _passes_on(node) else _MIXED
        elif _matches(node, ("embedding",)):
            carries[node] = _MIXED
    return carries


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found: set[fx.Node] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue.extend(node.all_input_nodes)
    return found


def _passes_on(node: fx.Node) -> bool:
    """Whether a node's result is still, element by element or summed up, that of its operand."""
    if node.target in VIEWS or node.target in CASTS:
        return True
    pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
    return pointwise or _matches(node, (*_REDUCTIONS, *_SELECTIONS, *RANKING, *TOP_ONE, *LOSS_OPS))


def _looks_like_a_head(graph: fx.Graph, gemm: Gemm, provenance: Provenance) -> str | None:
    """A linear whose result leaves the graph: logits where the loss is computed elsewhere, or just a block's output."""
    embeddings = graph.find_nodes(op="call_function", target=aten.embedding.default)
    embedded = {name for node in embeddings for name in provenance.origin[node.args[0]].parameters}
    if gemm.weight_names & embedded:
        return "output head: its result leaves the graph and its weight is the embedding's"
    if HEAD_NAMES.search(gemm.layer):
        return f"output head: its result leaves the graph and it is called {gemm.layer!r}"
    last = [g for g in provenance.gemms if g.role == "fprop"][-1]
    vocabularies = [node.args[0].meta["val"].shape[0] for node in embeddings]
    width = gemm.node.meta["val"].shape[1]
    if (
        gemm is last
        and gemm.grouped is None
        and any(statically_known_true(width == vocabulary) for vocabulary in vocabularies)
    ):
        return "output head: the last product of the graph, as wide as the vocabulary that the graph embeds"
    return None


def _is_scalar_reduction(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return _matches(node, ("sum", "mean")) and isinstance(value, torch.Tensor) and value.dim() == 0


def _matches(node: fx.Node, parts: tuple[str, ...]) -> bool:
    """Whether the operator, or the one it was decomposed from, is one of these."""
    for target in (node.target, node.meta.get("original_aten")):
        if isinstance(target, OpOverload):
            name = str(target).removeprefix("aten.").removeprefix("prims.")
            if any(name.removeprefix("_").startswith(part) for part in parts):
                return True
        elif getattr(target, "__name__", "") in parts:
            return True
    return False
