"""What is wrong with a setting is said in one line that names it and the nearest valid one."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from spectral_compile.recipes import Hadamard, MeanCenter, Operand, QuantizeFP4, Rule
from spectral_compile.validation import check_name

RULE_SETTINGS = (
    "'layers', 'last_blocks', 'gemms', 'high_precision', 'format', 'activations', 'weights', 'gradients', 'hadamard'"
)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: MeanCenter(min_rows=0),
        "MeanCenter setting 'min_rows' cannot be 0; it is a number of tokens, 1 or more",
    ),
    (
        lambda: MeanCenter(mode="papre"),  # type: ignore[arg-type]
        "MeanCenter setting 'mode' cannot be 'papre' (did you mean 'paper'?); it is one of 'hp', 'requant', 'paper'",
    ),
    (
        lambda: MeanCenter(activations=1),  # type: ignore[arg-type]
        "MeanCenter setting 'activations' cannot be 1: input should be a valid boolean",
    ),
    (
        lambda: Operand(scale="flor"),  # type: ignore[arg-type]
        "Operand setting 'scale' cannot be 'flor' (did you mean 'floor'?); it is one of 'amax', 'headroom',"
        " 'four_six', 'floor', 'ceil', 'rceil', 'even'",
    ),
    (lambda: QuantizeFP4(weights=3), "QuantizeFP4 setting 'weights' cannot be 3; it is an Operand(...)"),  # type: ignore[arg-type]
    (
        lambda: Hadamard(gemms="wgard"),  # type: ignore[arg-type]
        "Hadamard setting 'gemms' cannot be 'wgard'; it is a list of 'fprop', 'dgrad', 'wgrad'",
    ),
    (
        lambda: Rule(gems="wgrad"),  # type: ignore[call-arg]
        f"Rule has no setting 'gems' (did you mean 'gemms'?); its settings are {RULE_SETTINGS}",
    ),
    (
        lambda: Rule(layers="("),
        "Rule: '(' is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    (lambda: Rule(last_blocks=0), "Rule: last_blocks is a number of 1 or more, or a share between 0 and 1, not 0"),
    (lambda: Rule(last_blocks=1.0), "Rule: last_blocks is a number of 1 or more, or a share between 0 and 1, not 1.0"),
    (
        lambda: Rule(last_blocks="two"),  # type: ignore[arg-type]
        "Rule setting 'last_blocks' cannot be 'two'; it is a number of blocks, or a share",
    ),
    (lambda: Rule(gemms=()), "Rule: gemms is empty, so the rule is about nothing"),
    (
        lambda: Rule(high_precision=True, hadamard=True),
        "Rule: high_precision leaves the GEMMs as they are: leave all other settings out",
    ),
    (
        lambda: Rule(gemms=("fprop",), gradients=Operand(rounding="nearest")),
        "Rule: fprop reads no gradient: leave gradients out",
    ),
    (
        lambda: Operand(format="identity", rounding="stochastic"),
        "Operand: format 'identity' rounds nothing: leave rounding, scale and square out",
    ),
    (
        lambda: Rule(layers="head", last_blocks=2),
        "Rule: layers and last_blocks both say which layers are meant: give one of them",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_bad_setting_is_a_plain_value_error_of_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$") as caught:
        make()
    assert type(caught.value) is ValueError


def test_settings_are_frozen_hashable_and_print_canonically() -> None:
    rule = Rule(layers="up", gemms=["fprop"], activations=Operand(rounding="nearest"))  # type: ignore[arg-type]
    assert rule.gemms == ("fprop",)
    assert Rule(gemms="fprop").gemms == ("fprop",)  # type: ignore[arg-type]
    assert {rule: 1}[Rule(layers="up", gemms=("fprop",), activations=Operand(rounding="nearest"))] == 1
    assert repr(MeanCenter()) == "MeanCenter(activations=True, gradients=True, mode='hp', min_rows=32)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.layers = "down"  # type: ignore[misc]


def test_the_nearest_name_is_proposed_and_long_lists_are_not_printed() -> None:
    with pytest.raises(
        ValueError, match=re.escape("unknown fruit 'aple' (did you mean 'apple'?); fruits are 'apple', 'fig'")
    ):
        check_name("fruit", "aple", ["apple", "fig"])
    with pytest.raises(ValueError, match=r"^unknown number '7x' \(did you mean '7'\?\)$"):
        check_name("number", "7x", map(str, range(30)))
    check_name("fruit", "fig", ["apple", "fig"])
