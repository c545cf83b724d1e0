"""Putting a rewritten layer in the place of the one that was there."""

from collections.abc import Mapping

from torch import fx

from spectral_compile.passes.headwise_router.cut import Split
from spectral_compile.passes.headwise_router.flow import Flow, shape, value, works_in_place
from spectral_compile.passes.headwise_router.match import LayerError, Router
from spectral_compile.passes.headwise_router.modes import MODES, Rewritten
from spectral_compile.passes.headwise_router.writer import Writer


def rewrite(router: Router, mode: str, split: Split) -> Rewritten:
    """Rewrite the layer in its graph, whole. Raises LayerError, the graph being as it was, where that cannot be."""
    found, flow = router.found, router.flow
    gates = flow.before([found.weights, found.indices])
    kept = [node for node in router.body if node not in gates] if mode == "vote" else []
    place = max((found.weights, found.indices), key=flow.order.__getitem__) if kept else found.output
    writer = Writer(router.logits.graph, place, found.output)
    gone = [node for node in router.body if node not in kept]
    try:
        rewritten = MODES[mode](writer, router, split)
        instead = {**rewritten.instead, **_counts(writer, router, rewritten, gone)}
    except LayerError:
        writer.take_back()
        raise
    replace_uses(instead, writer, flow, but={*writer.written, *gone})
    _erase(gone)
    return rewritten


def replace_uses(instead: Mapping[fx.Node, fx.Node], writer: Writer, flow: Flow, but: set[fx.Node]) -> None:
    """Let users read what the writer wrote; those that stand before it move behind it, with all that depends on them.

    flow: of the graph before anything was written. but: nodes that are none of these users.
    """
    users = {user for old in instead for user in old.users if user not in but}
    place = flow.order[writer.place]
    late = [node for node in flow.sorted(flow.after(users)) if flow.order[node] <= place and node not in but]
    for old, new in instead.items():
        for user in list(old.users):
            if user not in but:
                user.replace_input_with(old, new)
    last = writer.last
    for node in late:
        last.append(node)
        last = node


def _counts(writer: Writer, router: Router, rewritten: Rewritten, gone: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """What the program counts of the choices, such as tokens for each expert: now of all heads' choices. Scores [T, E]
    that it reads stay those of the whole router.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in router.counted:
        if node in rewritten.instead or node not in gone:
            continue
        if shape(node) == shape(router.logits) and value(node).dtype.is_floating_point:
            continue
        copies = [head.of[node] for head in rewritten.heads if node in head.of]
        if len(copies) != len(rewritten.heads) or shape(node) != (router.experts,):
            raise LayerError(f"{node.name} is read by what is not of the layer, and several heads have no such thing")
        total = copies[0]
        for copy in copies[1:]:
            total = writer.method("add", total, copy)
        found[node] = total
    return found


def _erase(gone: list[fx.Node]) -> None:
    """Nodes that nothing reads any more; what works in place goes with what it worked on."""
    for node in reversed(gone):
        changed = node.args[0] if works_in_place(node) else None
        still_read = isinstance(changed, fx.Node) and any(user not in gone for user in changed.users)
        if not node.users and not still_read:
            node.graph.erase_node(node)
