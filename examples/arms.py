"""The arms of a comparison: one name each, and what `torch.compile` is given for it."""

import re
from dataclasses import dataclass
from typing import Any

import torch

import spectral_compile  # for the names of recipes and for rounding seeds only: the backend is found by its name


@dataclass(frozen=True)
class Arm:
    """One way to compile the model: a name, and what `torch.compile` is given."""

    name: str
    backend: str
    options: dict[str, Any] | None = None

    def seed_rounding(self, seed: int) -> None:
        """Restart the random numbers of stochastic rounding."""
        if self.backend == "spectral":
            spectral_compile.manual_seed(seed)


BF16 = Arm("bf16", "inductor")
PLAIN = "nvfp4-plain"  # four bits and nothing else: what every other recipe has to beat
NO_EVIDENCE = ("none", "identity", "auto")  # the first two quantise nothing, the last is another recipe's alias


def parse_arms(names: str, layers: int) -> list[Arm]:
    """Arms of a comma list: "bf16" is Inductor, every other name a recipe of the spectral backend.

    "<recipe>/last-<n>" is the recipe with the last n of the model's blocks, `layers` in all, left in high precision.
    Raises `ValueError` for an empty list, an unknown name, an impossible n, or where the package is not installed.
    """
    unique = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not unique:
        raise ValueError(f"arms: name at least one of {_known()}")
    arms = [_parse_arm(name, layers) for name in unique]
    if arms != [BF16] and "spectral" not in torch.compiler.list_backends():
        raise ValueError("torch.compile finds no backend 'spectral': install the package, pip install -e .")
    return arms


def evidence_arms() -> str:
    """The comma list that decides on a default: bf16, each recipe that quantises, and one that spares the last block.

    Of recipes with equal passes only the first is in: the others would be the same runs under another name.
    """
    by_passes: dict[object, str] = {}
    for name, passes in spectral_compile.RECIPES.items():
        if name not in NO_EVIDENCE:
            by_passes.setdefault(passes, name)
    return ",".join([BF16.name, *by_passes.values(), f"{PLAIN}/last-1"])


def _parse_arm(name: str, layers: int) -> Arm:
    if name == BF16.name:
        return BF16
    recipe, slash, rest = name.partition("/")
    if recipe == BF16.name:
        raise ValueError(f"arm {name!r}: all of bf16 is in high precision; what comes before the slash is a recipe")
    if recipe not in spectral_compile.RECIPES:
        raise ValueError(f"unknown arm {name!r}; arms are {_known()}, and <recipe>/last-<n>")
    if not slash:
        return Arm(name, "spectral", {"recipe": recipe})
    last = re.fullmatch(r"last-(-?\d+)", rest)
    if last is None:
        raise ValueError(f"arm {name!r}: after the slash comes last-<n>, as in {PLAIN}/last-1")
    spared = int(last[1])
    if not 1 <= spared <= layers:
        raise ValueError(f"arm {name!r}: the model has {layers} blocks, so last-<n> is last-1 to last-{layers}")
    blocks = "|".join(map(str, range(layers - spared, layers)))
    return Arm(name, "spectral", {"recipe": recipe, "exclude": [rf"^layers\.({blocks})\."]})


def _known() -> str:
    return ", ".join([BF16.name, *spectral_compile.RECIPES])
