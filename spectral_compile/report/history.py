"""What became of each node from one stage to the next, and which products it works for."""

from collections.abc import Iterable, Mapping
from typing import Any

Stage = Mapping[str, Any]


def fates(before: Stage, after: Iterable[Stage]) -> dict[str, dict[str, Any]]:
    """For each node of a stage that is in none of the next (forward and backward follow the last joint stage): `to`,
    the nodes that do its work now; `how`, "replaced", "folded" into what those who read it became, or "unused"; and
    `by`, the pass, where it is known.
    """
    following = list(after)
    alive = {node["name"] for stage in following for node in stage["nodes"]}
    same = {(node["name"], node.get("by")) for stage in following for node in stage["nodes"]}
    replaced: dict[str, list[tuple[str, str]]] = {}
    for stage in following:
        for old, (new, by) in stage["replaced"].items():
            replaced.setdefault(old, []).append((new, by))
    pass_after = next((stage["after"] for stage in following if stage["after"]), "")
    users = users_of(before)
    found: dict[str, dict[str, Any]] = {}
    for node in reversed(before["nodes"]):  # so that the fate of a node's users is known before its own
        name = node["name"]
        if (name, node.get("by")) in same:  # a part's passes may give a name that was another's
            continue
        new = list(_survivors(name, replaced, alive))
        if new:
            found[name] = {"to": [survivor for survivor, _ in new], "how": "replaced", "by": new[0][1]}
            continue
        to = dict.fromkeys(place for user in users[name] for place in found.get(user, {"to": [user]})["to"])
        found[name] = {"to": list(to), "how": "folded" if to else "unused", "by": pass_after}
    return found


def users_of(stage: Stage) -> dict[str, list[str]]:
    """For each node, by name, the nodes that read it."""
    users: dict[str, list[str]] = {node["name"]: [] for node in stage["nodes"]}
    for node in stage["nodes"]:
        for name in node["inputs"]:
            users[name].append(node["name"])
    return users


def serves(stage: Stage) -> dict[str, list[int]]:
    """For each node that is a planned product, or was made by a pass on the way to one, the rows of the plan."""
    nodes = {node["name"]: node for node in stage["nodes"]}
    found: dict[str, list[int]] = {}
    for row, product in enumerate(stage["products"]):
        pending = [product] if product in nodes else []
        seen = set(pending)
        while pending:
            name = pending.pop()
            found.setdefault(name, []).append(row)
            inputs = [other for other in nodes[name]["inputs"] if other not in seen and "by" in nodes[other]]
            if "by" in nodes[name]:
                seen.update(inputs)
                pending.extend(other for other in inputs if other not in stage["products"])
    return found


def _survivors(
    name: str, replaced: Mapping[str, list[tuple[str, str]]], alive: set[str]
) -> dict[tuple[str, str], None]:
    """Along replacements of replacements."""
    found: dict[tuple[str, str], None] = {}
    pending, seen = list(replaced.get(name, ())), {name}
    while pending:
        new, by = pending.pop(0)
        if new in alive:
            found[new, by] = None
        elif new not in seen:
            seen.add(new)
            pending.extend(replaced.get(new, ()))
    return found
