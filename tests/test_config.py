"""Options: what is accepted, what is refused and how it is said, and what makes code compile anew."""

import dataclasses
import re
from typing import Any

import pytest

from spectral_compile import config
from spectral_compile.config import Options, parse_options
from spectral_compile.recipes import RECIPES, Hadamard, MeanCenter, Operand, QuantizeFP4, Rule

ALL_OPTIONS = ", ".join(
    map(
        repr,
        [
            "recipe",
            "passes",
            "exclude",
            "rules",
            "inference",
            "codegen",
            "carrier",
            "dump",
            "numerics",
            "disable",
            "inductor",
        ],
    )
)
ALL_PASSES = "MeanCenter(...), Hadamard(...), QuantizeFP4(...), WeightSmoothing(...), HeadwiseRouter(...)"
ALL_RECIPES = ", ".join(map(repr, RECIPES))

REFUSED: list[tuple[dict[Any, Any], str]] = [
    ({"exclud": []}, f"unknown option 'exclud' (did you mean 'exclude'?); options are {ALL_OPTIONS}"),
    ({"zzzz": 1}, f"unknown option 'zzzz'; options are {ALL_OPTIONS}"),
    ({3: 1}, f"unknown option 3; options are {ALL_OPTIONS}"),
    ({"recipe": "avris"}, f"unknown recipe 'avris' (did you mean 'averis'?); recipes are {ALL_RECIPES}"),
    ({"recipe": "zzzz"}, f"unknown recipe 'zzzz'; recipes are {ALL_RECIPES}"),
    ({"recipe": None}, f"option 'recipe' cannot be None; it is one of {ALL_RECIPES}"),
    (
        {"codegen": "eagre"},
        "option 'codegen' cannot be 'eagre' (did you mean 'eager'?); it is one of 'inductor', 'eager'",
    ),
    (
        {"inference": "quantised"},
        "option 'inference' cannot be 'quantised' (did you mean 'quantized'?);"
        " it is one of 'quantized', 'high-precision'",
    ),
    (
        {"carrier": 8},
        "option 'carrier' cannot be 8 (did you mean 'fp8'?); it is one of 'auto', 'native', 'fp8', 'bf16', 'fp32'",
    ),
    ({"exclude": None}, "option 'exclude' cannot be None; it is a list of regular expressions"),
    ({"exclude": ["fine", 1]}, "option 'exclude' cannot be 1; it is a list of regular expressions"),
    (
        {"exclude": ["fine", "("]},
        "option 'exclude': '(' is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    ({"rules": ["head"]}, "option 'rules' cannot be 'head'; it is a list of Rule(...)"),
    ({"inductor": 5}, "option 'inductor' cannot be 5; it is a dict of Inductor's options"),
    ({"inductor": {1: 0, "a": 0}}, "option 'inductor' cannot be 1; it is a dict of Inductor's options"),
    (
        {"passes": ["mean_center"]},
        f"option 'passes' cannot be 'mean_center'; it is a list of passes: {ALL_PASSES}",
    ),
    (
        {"passes": [{"min_rows": 1}]},
        f"option 'passes' cannot be {{'min_rows': 1}}; it is a list of passes: {ALL_PASSES}",
    ),
    ({"passes": [Rule()]}, f"option 'passes' cannot be Rule(...); it is a list of passes: {ALL_PASSES}"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_bad_options_are_refused_with(options: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_options(options)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (MeanCenter, "min_rows", 0),
        (MeanCenter, "min_rows", 3.0),
        (MeanCenter, "activations", 1),
        (MeanCenter, "gradients", "yes"),
        (QuantizeFP4, "format", "fp4"),
        (QuantizeFP4, "weights", "square"),
        (Operand, "rounding", "up"),
        (Operand, "square", 16),
        (Hadamard, "gemms", "bprop"),
        (QuantizeFP4, "tile", 16),
    ],
)
def test_passes_refuse_bad_settings_with_a_value_error_that_names_them(kind: type, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        kind(**{key: value})


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_options_mean_the_default_recipe(nothing: dict[str, Any] | None) -> None:
    assert parse_options(nothing) == Options()
    assert Options().resolved() == (QuantizeFP4(),)
    assert Options().all_rules() == (Rule(last_blocks=0.15, high_precision=True),)


def test_lists_single_patterns_and_dicts_are_taken_and_frozen() -> None:
    parsed = parse_options(
        {"exclude": ["a", "b"], "passes": [MeanCenter()], "inductor": {"b": 2, "a": 1}, "codegen": "eager"}
    )
    assert parsed.exclude == ("a", "b")
    assert parsed.passes == (MeanCenter(),)
    assert parsed.inductor == (("a", 1), ("b", 2))
    assert parse_options({"exclude": "lm_head"}).exclude == ("lm_head",)
    assert parse_options({"rules": Rule()}).rules == (Rule(),)
    assert parse_options({"passes": MeanCenter()}).passes == (MeanCenter(),)
    assert hash(parsed) == hash(parse_options(dataclasses.asdict(parsed) | {"passes": [MeanCenter()]}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.recipe = "none"  # type: ignore[misc]


def test_patterns_to_exclude_are_rules_before_all_others() -> None:
    rule = Rule(gemms=("wgrad",), format="mxfp4")
    parsed = parse_options({"exclude": ["head", "gate"], "rules": [rule]})
    assert parsed.rules == (rule,)
    first, second = (Rule(layers=pattern, high_precision=True) for pattern in ("head", "gate"))
    assert parsed.own_rules() == (first, second, rule)
    assert parsed.all_rules() == (first, second, rule, *Options().all_rules())


def test_settings_that_do_not_go_together_are_refused_with_the_rule_that_asks() -> None:
    rule = Rule(layers="up", gradients=Operand(scale="ceil"))
    message = "by the rule for layers 'up' cannot be done: gradients: nvfp4 has no scale rule 'ceil'; its rules are"
    with pytest.raises(ValueError, match=message):
        parse_options({"rules": [rule]})
    parse_options({"rules": [rule], "recipe": "mxfp4"})


def test_what_the_user_wrote_is_not_changed() -> None:
    options = {"exclude": ["a"], "inductor": {"a": 1}}
    parse_options(options)
    assert options == {"exclude": ["a"], "inductor": {"a": 1}}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_parses_to_its_passes(recipe: str) -> None:
    parsed = parse_options({"recipe": recipe})
    assert (*parsed.resolved(), *parsed.all_rules()) == RECIPES[recipe]


def test_a_pass_replaces_the_recipes_pass_of_its_class_in_place() -> None:
    parsed = parse_options({"recipe": "averis", "passes": [MeanCenter(min_rows=8)]})
    assert parsed.resolved() == (MeanCenter(min_rows=8), QuantizeFP4())
    assert parsed.find(MeanCenter) == MeanCenter(min_rows=8)


def test_a_pass_that_the_recipe_lacks_joins_it() -> None:
    parsed = parse_options({"recipe": "nvfp4-plain", "passes": [MeanCenter()]})
    assert parsed.resolved() == (QuantizeFP4(), MeanCenter())
    assert parse_options({"recipe": "nvfp4-plain"}).find(MeanCenter) is None


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        *((None, ()), ("", ()), ("0", ()), ("1", (config.ALL,)), ("yes", (config.ALL,))),
        ("mean_center, hadamard", ("mean_center", "hadamard")),
    ],
)
def test_spectral_disable(value: str | None, disabled: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECTRAL_DISABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("SPECTRAL_DISABLE", value)
    assert config.disabled_by_environment() == disabled


def test_a_disabled_pass_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_options({"recipe": "averis", "disable": "mean_center"}).find(MeanCenter) is None
    assert parse_options({"recipe": "averis"}).find(MeanCenter) is not None
    monkeypatch.setenv("SPECTRAL_DISABLE", "mean_center")
    assert parse_options({"recipe": "averis", "disable": ["hadamard"]}).disable == ("hadamard", "mean_center")
    monkeypatch.setenv("SPECTRAL_DISABLE", "mean_centre")
    with pytest.raises(
        ValueError, match=r"unknown pass in SPECTRAL_DISABLE 'mean_centre' \(did you mean 'mean_center'\?\)"
    ):
        parse_options({})
