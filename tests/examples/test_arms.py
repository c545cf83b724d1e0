"""Names of arms: recipes, and recipes that spare the last blocks."""

import re

import pytest
from torch import nn

import spectral_compile
from examples.arms import BF16, PLAIN, Arm, evidence_arms, parse_arms
from examples.gpt import GPT, GPTConfig


def spared(arm: Arm, layers: int) -> list[str]:
    """The linear layers of a GPT that the arm's rules leave in high precision."""
    assert arm.options is not None
    modules = GPT(GPTConfig(dim=8, layers=layers, heads=2, context=4)).named_modules()
    paths = [name for name, module in modules if isinstance(module, nn.Linear)]
    return [path for path in paths if any(re.search(pattern, path) for pattern in arm.options["exclude"])]


def test_bf16_is_inductor_and_repeated_names_are_one_arm() -> None:
    assert parse_arms("bf16, bf16", layers=4) == [BF16]
    assert parse_arms("bf16,averis", layers=4)[1] == Arm("averis", "spectral", {"recipe": "averis"})


@pytest.mark.parametrize("last", [1, 2, 11])
def test_last_blocks_are_spared_and_no_others(last: int) -> None:
    (arm,) = parse_arms(f"averis/last-{last}", layers=12)
    assert arm.options is not None
    assert arm.options["recipe"] == "averis"
    blocks = [int(path.split(".")[1]) for path in spared(arm, layers=12)]
    assert blocks == [block for block in range(12 - last, 12) for _ in range(7)]  # 1 must not match 11


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (" , ", "arms: name at least one of bf16, "),
        ("bf16,no-such-recipe", "unknown arm 'no-such-recipe'; arms are bf16, "),
        ("no-such-recipe/last-1", "unknown arm 'no-such-recipe/last-1'"),
        ("bf16/last-1", "arm 'bf16/last-1': all of bf16 is in high precision"),
        ("averis/last-0", "the model has 4 blocks, so last-<n> is last-1 to last-4"),
        ("averis/last--1", "the model has 4 blocks"),
        ("averis/last-5", "the model has 4 blocks"),
        ("averis/first-1", "after the slash comes last-<n>"),
        ("averis/", "after the slash comes last-<n>"),
    ],
)
def test_bad_arms_are_one_line(names: str, message: str) -> None:
    with pytest.raises(ValueError, match="arm") as error:
        parse_arms(names, layers=4)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_evidence_arms_are_every_quantising_recipe_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {name: spectral_compile.RECIPES[name] for name in ("none", "identity", "nvfp4-plain", "averis")}
    recipes |= {"auto": (), "same-again": recipes["averis"]}
    monkeypatch.setattr(spectral_compile, "RECIPES", recipes)
    assert evidence_arms() == f"bf16,nvfp4-plain,averis,{PLAIN}/last-1"


def test_evidence_arms_of_the_package_parse() -> None:
    names = [arm.name for arm in parse_arms(evidence_arms(), layers=4)]
    assert names[0] == "bf16"
    assert names[-1] == "nvfp4-plain/last-1"
    assert {"nvfp4-plain", "averis"} < set(names)
    assert not {"none", "identity", "auto"} & set(names)
