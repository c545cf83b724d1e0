"""Which part of the model each node belongs to: the bands into which the picture of a graph is cut."""

from collections.abc import Mapping, Sequence
from typing import Any

_GLUE = 4  # operations between two modules, too few for a band of their own


class Bands:
    """Found once, in the first stage of a joint graph, so that every stage is cut alike. labels: of each band, in the
    order in which the forward goes through them.
    """

    def __init__(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        self.labels: list[str] = []
        self._by_seq: dict[int, int] = {}
        self._by_part: dict[str, int] = {}
        runs: list[tuple[str, list[Mapping[str, Any]]]] = []
        for node in nodes:
            if node.get("op") or node.get("backward"):
                continue
            part = part_of(node.get("layer", ""))
            if not runs or runs[-1][0] != part:
                runs.append((part, []))
            runs[-1][1].append(node)
        for part, run in _without_glue(runs):
            for node in run:
                self._by_seq.setdefault(node.get("seq", -1), len(self.labels))
            self._by_part[part] = len(self.labels)
            self.labels.append(part)

    def of(self, nodes: Sequence[Mapping[str, Any]]) -> list[int]:
        """The band of each node of a stage. A backward operation has its forward's; an input that of its first reader;
        and what is nowhere known, that of what it reads.
        """
        index = {node["name"]: place for place, node in enumerate(nodes)}
        found: list[int | None] = [self._known(node) for node in nodes]
        for place, node in enumerate(nodes):
            if found[place] is None:
                read = [found[index[name]] for name in node["inputs"]]
                found[place] = next((band for band in reversed(read) if band is not None), None)
        for place in range(len(nodes) - 1, -1, -1):
            for name in nodes[place]["inputs"]:
                other = index[name]
                first_reader = bool(nodes[other].get("op")) or found[other] is None
                found[other] = found[place] if first_reader else found[other]
        return [0 if band is None else band for band in found]

    def _known(self, node: Mapping[str, Any]) -> int | None:
        if node.get("op"):
            return None
        if "seq" in node and node["seq"] in self._by_seq:
            return self._by_seq[node["seq"]]
        return self._by_part.get(part_of(node["layer"])) if "layer" in node else None


def part_of(layer: str) -> str:
    """A path up to its first number, which tells apart the blocks of a stack: model.layers.0 of
    model.layers.0.mlp.up_proj.
    """
    steps = layer.split(".")
    numbers = (place for place, step in enumerate(steps) if step.isdigit())
    return ".".join(steps[: next(numbers, len(steps)) + 1])


def _without_glue(
    runs: Sequence[tuple[str, list[Mapping[str, Any]]]],
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Runs of a few operations directly in what holds the part before go with that part."""
    joined: list[tuple[str, list[Mapping[str, Any]]]] = []
    for part, run in runs:
        last = joined[-1][0] if joined else ""
        holds_last = part == "" or last.startswith(f"{part}.")
        if joined and (part == last or (holds_last and len(run) <= _GLUE)):
            joined[-1][1].extend(run)
        else:
            joined.append((part, list(run)))
    return joined
