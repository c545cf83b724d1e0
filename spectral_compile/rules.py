"""Rules on a layer's path: which layers are meant by a pattern, or as the last blocks of a model."""

import re
from collections.abc import Iterable, Sequence

from spectral_compile.recipes import GemmRole, Rule

_IN_A_BLOCK = re.compile(r"^((?:[^.\d][^.]*\.)*)(\d+)\.")


def find_rule(rules: Iterable[Rule], layer: str, role: GemmRole, layers: Sequence[str]) -> Rule | None:
    """The first rule that matches a GEMM of `layer`, one of all the `layers` of a graph."""
    return next((rule for rule in rules if role in rule.gemms and selects(rule, layer, layers)), None)


def selects(rule: Rule, layer: str, layers: Sequence[str]) -> bool:
    """Whether a rule is about a layer, one of all the `layers` of a graph."""
    if rule.last_blocks is None:
        return re.search(rule.layers, layer) is not None
    return any(layer == block or layer.startswith(f"{block}.") for block in last_blocks(layers, rule.last_blocks))


def without_effect(rules: Iterable[Rule], layers: Sequence[str]) -> list[Rule]:
    """Rules about none of the layers: they deserve a word."""
    return [rule for rule in rules if not any(selects(rule, layer, layers) for layer in layers)]


def last_blocks(layers: Iterable[str], count: int | float) -> list[str]:
    """Paths of the last blocks of a model, as "layers.31" is one, given the paths of all its layers.

    Blocks are what is numbered and has layers inside; of several lists of them the longest is meant. A share below 1 is
    rounded: the last 0.15 of 4 blocks are 1, and of 3 blocks none.
    """
    stacks: dict[str, set[int]] = {}
    for layer in layers:
        if (match := _IN_A_BLOCK.match(layer)) is not None:
            stacks.setdefault(match[1], set()).add(int(match[2]))
    if not stacks:
        return []
    prefix, numbers = max(stacks.items(), key=lambda stack: len(stack[1]))
    wanted = count if isinstance(count, int) else round(count * len(numbers))
    return [f"{prefix}{number}" for number in sorted(numbers)[len(numbers) - min(wanted, len(numbers)) :]]
