"""Mixture-of-experts routers split head by head: the pass `HeadwiseRouter`, on the Dynamo graph, before autograd.

match.py finds layers, families.py says which are known; cut.py copies one for a head's slice of the features; modes.py
makes of the copies what was asked for; rewrite.py and balance.py put it in place.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import fx

from spectral_compile.errors import SpectralValueError
from spectral_compile.passes.headwise_router.balance import balance
from spectral_compile.passes.headwise_router.cut import Split
from spectral_compile.passes.headwise_router.flow import Flow, name_of, shape, value
from spectral_compile.passes.headwise_router.match import LayerError, Router, find_routers, match_router
from spectral_compile.passes.headwise_router.modes import Rewritten
from spectral_compile.passes.headwise_router.rewrite import rewrite
from spectral_compile.plan import RouterPlan
from spectral_compile.recipes import HeadwiseRouter
from spectral_compile.scopes import Scopes

ALIGNMENT = 16  # bytes that a row of a grouped product's operand starts at a multiple of
_CHANGES_FUNCTION = ("subtoken", "bank")


def headwise_router(gm: fx.GraphModule, scopes: Scopes) -> list[RouterPlan]:
    """Rewrite the routers that are asked for, and say what became of each.

    Raises ValueError where a number of heads does not fit a layer.
    """
    if not any(options.find(HeadwiseRouter) for options in (scopes.base, *scopes.all_options)):
        return []
    plans: list[RouterPlan] = []
    for module in gm.modules():  # checkpointed regions are graphs of their own
        if isinstance(module, fx.GraphModule):
            plans += _in_graph(module.graph, scopes)
            module.graph.lint()
            module.recompile()
    _warn(plans, scopes)
    return plans


def _in_graph(graph: fx.Graph, scopes: Scopes) -> list[RouterPlan]:
    plans: list[RouterPlan] = []
    balanced: list[tuple[Router, Rewritten]] = []
    for logits in [router.logits for router in find_routers(graph)]:
        router = match_router(Flow(graph), logits)  # afresh: rewriting one changed the graph of the others
        assert router is not None
        settings = scopes.of(router.logits).find(HeadwiseRouter)
        if settings is None:
            continue
        heads = 0 if router.reason else _heads(router, settings)
        plan = _plan(router, settings, heads)
        if scopes.excluded(router.logits):
            plan = plan.left("excluded: spectral_compile.exclude was said of its module or function")
        if not plan.reason:
            try:
                new = rewrite(router, settings.mode, Split(heads, settings.factor(heads), plan.top_k))
            except LayerError as unknown:
                plan = plan.left(str(unknown))
            else:
                balanced += [(router, new)] if settings.aux == "per_head" else []
        plans.append(plan)
    for count in {len(new.heads) for _, new in balanced}:
        balance(graph, [(router, new) for router, new in balanced if len(new.heads) == count])
    return plans


def _plan(router: Router, settings: HeadwiseRouter, heads: int) -> RouterPlan:
    if router.reason:
        return RouterPlan(router.layer, router.family, "", router.experts, 0, 0, "", router.reason, router.leaves)
    top_k = settings.experts_per_head or router.top_k
    return RouterPlan(router.layer, router.family, router.dispatch, router.experts, top_k, heads, settings.mode)


def _heads(router: Router, settings: HeadwiseRouter) -> int:
    """How many, checked against the layer."""
    features, heads = router.features, settings.heads
    called = f"HeadwiseRouter: layer {router.layer!r}"
    if heads == "attention":
        heads = _attention_heads(router)
        if not heads:
            raise SpectralValueError(f"{called} follows no attention in its graph: say heads=2, or another number")
    element = value(router.base).element_size()
    aligned = "grouped_mm" in router.dispatch.split(" and ") and settings.mode != "vote"
    valid = [
        h
        for h in range(1, features + 1)
        if features % h == 0 and not (aligned and (features // h * element) % ALIGNMENT)
    ]
    if heads not in valid:
        why = f", in slices whose rows are multiples of {ALIGNMENT} bytes," if features % heads == 0 else ""
        shown = ", ".join(map(str, valid[:12])) + (", ..." if len(valid) > 12 else "")
        raise SpectralValueError(f"{called}: {features} features{why} do not go into {heads} heads; valid: {shown}")
    if settings.experts_per_head is not None and settings.experts_per_head > router.experts:
        raise SpectralValueError(
            f"{called}: experts_per_head is 1 to {router.experts}, not {settings.experts_per_head}"
        )
    return heads


def _attention_heads(router: Router) -> int:
    """Of the nearest attention that the layer follows; 0 where there is none."""
    before = router.flow.before([router.base])
    nodes = [node for node in router.flow.sorted(before) if "scaled_dot_product_attention" in name_of(node)]
    query: Any = nodes[-1].args[0] if nodes else None
    return int(shape(query)[-3]) if nodes else 0


def _warn(plans: Sequence[RouterPlan], scopes: Scopes) -> None:
    if any(plan.breaks for plan in plans):
        warnings.warn(
            "spectral: HeadwiseRouter: experts that break the graph are not split; with transformers,"
            ' model.set_experts_implementation("grouped_mm") keeps them in one graph',
            stacklevel=4,
        )
    settings = [options.find(HeadwiseRouter) for options in (scopes.base, *scopes.all_options)]
    acknowledged = all(one.acknowledge for one in settings if one is not None)
    changed = [plan for plan in plans if not plan.reason and plan.mode in _CHANGES_FUNCTION and plan.heads > 1]
    if changed and not acknowledged:
        warnings.warn(
            f"spectral: HeadwiseRouter: mode {changed[0].mode!r} makes another function of the same parameters:"
            " train it from the start, or use mode 'mask' or 'vote' on weights that were trained without it"
            " (acknowledge=True silences this)",
            stacklevel=4,
        )
