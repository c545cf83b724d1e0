"""Where a graph's nodes stand on the page: a layered layout, nearly linear in the size of the graph.

Forward runs down on the left, backward up on the right, and both are cut into bands, one for each part of the model
(`bands.py`): so the backward of a layer stands beside its forward, and what is saved from one for the other is a short
line. Within a band a node stands below all that it reads (longest path); along a row nodes are drawn towards what
they read and what reads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SWEEPS = 6
_NEAR = 12  # rows: a neighbour further away has no say in where a node stands
_APART = 2  # rows between bands
_BETWEEN_SIDES = 1.5


@dataclass(frozen=True)
class Layout:
    """x in columns, rows from the top, for each node; bands: (band, first row, last row), from the top."""

    x: list[float]
    row: list[int]
    bands: list[tuple[int, int, int]]


def lay_out(inputs: Sequence[Sequence[int]], backward: Sequence[bool], band: Sequence[int]) -> Layout:
    """inputs: for each node, in an order in which every node follows what it reads, the nodes that it reads. backward:
    whether it belongs to the backward; band: which band.
    """
    one_side = all(backward) or not any(backward)
    right = [False] * len(inputs) if one_side else list(backward)
    row, bands = _rows(inputs, right, band)
    x = [0.0] * len(inputs)
    edge = 0.0
    for side in (False, True):
        members = [node for node in range(len(inputs)) if right[node] is side]
        if members:
            _columns(members, inputs, right, row, x)
            shift = edge - min(x[node] for node in members)
            for node in members:
                x[node] += shift
            edge = max(x[node] for node in members) + 1 + _BETWEEN_SIDES
    return Layout([round(place, 2) for place in x], row, bands)


def _rows(
    inputs: Sequence[Sequence[int]], right: Sequence[bool], band: Sequence[int]
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Each node's row, and the rows of each band."""
    level = _levels(inputs, right, band)
    lowest: dict[tuple[int, bool], int] = {}
    highest: dict[tuple[int, bool], int] = {}
    for node, place in enumerate(level):
        key = (band[node], right[node])
        lowest[key] = min(lowest.get(key, place), place)
        highest[key] = max(highest.get(key, place), place)
    heights = {key: highest[key] - lowest[key] + 1 for key in lowest}
    order = sorted({one for one, _ in heights}) if any(right) else list(dict.fromkeys(band))
    begin: dict[int, int] = {}
    rows, bands = 0, []
    for one in order:
        height = max(heights.get((one, side), 0) for side in (False, True))
        begin[one] = rows
        bands.append((one, rows, rows + height - 1))
        rows += height + _APART
    ends = {one: last for one, _, last in bands}
    placed = []
    for node, place in enumerate(level):
        depth = place - lowest[band[node], right[node]]
        placed.append(ends[band[node]] - depth if right[node] else begin[band[node]] + depth)
    return placed, bands


def _levels(inputs: Sequence[Sequence[int]], right: Sequence[bool], band: Sequence[int]) -> list[int]:
    """Each node below all that it reads of its own band and side; weights, and what is computed from them alone, just
    above what reads them, and not all at the top.
    """
    level = [0] * len(inputs)
    floats = [True] * len(inputs)
    for node, read in enumerate(inputs):
        for other in read:
            if _together(node, other, right, band):
                level[node] = max(level[node], level[other] + 1)
                floats[node] &= floats[other]
            elif inputs[other] and right[node] is right[other]:  # comes from the band before
                floats[node] = False
    first_use: dict[int, int] = {}
    for node in range(len(inputs) - 1, -1, -1):
        if floats[node] and node in first_use:
            level[node] = first_use[node] - 1
        for other in inputs[node]:
            if _together(node, other, right, band):
                first_use[other] = min(first_use.get(other, level[node]), level[node])
    return level


def _together(a: int, b: int, right: Sequence[bool], band: Sequence[int]) -> bool:
    return right[a] is right[b] and band[a] == band[b]


def _columns(
    members: Sequence[int],
    inputs: Sequence[Sequence[int]],
    right: Sequence[bool],
    row: Sequence[int],
    x: list[float],
) -> None:
    """Set x of one side's nodes: sweeps down and up the rows, each towards the neighbours' places so far."""
    rows: dict[int, list[int]] = {}
    near: dict[int, list[tuple[int, float]]] = {node: [] for node in members}
    for node in members:
        rows.setdefault(row[node], []).append(node)
        for other in inputs[node]:
            span = abs(row[node] - row[other])
            if right[other] is right[node] and 0 < span <= _NEAR:
                near[node].append((other, 1 / span))
                near[other].append((node, 1 / span))
    for line in rows.values():
        for place, node in enumerate(line):
            x[node] = place - (len(line) - 1) / 2
    for sweep in range(_SWEEPS):
        for number in sorted(rows, reverse=sweep % 2 == 1):
            wanted = {node: _middle(near[node], x, x[node]) for node in rows[number]}
            line = sorted(rows[number], key=wanted.__getitem__)
            for node, near_wanted in zip(line, spread([wanted[node] for node in line]), strict=True):
                x[node] = near_wanted


def _middle(near: Sequence[tuple[int, float]], x: Sequence[float], otherwise: float) -> float:
    weight = sum(share for _, share in near)
    return sum(x[other] * share for other, share in near) / weight if weight else otherwise


def spread(wanted: Sequence[float]) -> Iterator[float]:
    """Places at least 1 apart that are nearest, by squares, to the wanted ones, which ascend."""
    blocks: list[tuple[float, int]] = []  # mean and number, of what was pushed together
    for index, place in enumerate(wanted):
        mean, count = place - index, 1
        while blocks and blocks[-1][0] > mean:
            before, size = blocks.pop()
            mean, count = (mean * count + before * size) / (count + size), count + size
        blocks.append((mean, count))
    index = 0
    for mean, count in blocks:
        for _ in range(count):
            yield mean + index
            index += 1
