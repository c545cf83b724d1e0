"""Rule before pass before default, operand by operand; and what does not go together."""

import pytest

from spectral_compile.policy import OperandPolicy, operand_policy, rounds_stochastically, transforms, validate
from spectral_compile.recipes import KINDS, RECIPES, Hadamard, MeanCenter, Operand, PassConfig, QuantizeFP4, Rule


def test_what_the_recipes_say_of_each_operand() -> None:
    nearest, weight = OperandPolicy("nvfp4", "nearest", "amax", 1, False), ("nvfp4", "nearest", "amax", 16, False)
    plain = RECIPES["nvfp4-plain"]
    assert operand_policy(plain, None, "activation") == nearest
    assert operand_policy(plain, None, "weight") == OperandPolicy(*weight)
    assert operand_policy(plain, None, "gradient") == OperandPolicy("nvfp4", "stochastic", "amax", 1, False)
    assert operand_policy(RECIPES["averis"], None, "activation").center
    assert operand_policy(RECIPES["averis"], None, "gradient").center
    assert not operand_policy(RECIPES["averis"], None, "weight").center
    assert operand_policy(RECIPES["mxfp4"], None, "weight") == OperandPolicy("mxfp4", "nearest", "even", 1, False)
    assert operand_policy(RECIPES["mxfp4"], None, "gradient") == OperandPolicy("mxfp4", "stochastic", "rceil", 1, False)
    identity = [operand_policy(RECIPES["identity"], None, kind) for kind in KINDS]
    assert {(p.format, p.rounding, p.tile_rows) for p in identity} == {("identity", "nearest", 1)}


def test_a_rule_comes_before_the_pass_and_the_pass_before_the_default() -> None:
    quantize = QuantizeFP4(gradients=Operand(rounding="nearest", scale="headroom"), weights=Operand(square=False))
    passes = (MeanCenter(), quantize)
    assert operand_policy(passes, None, "gradient") == OperandPolicy("nvfp4", "nearest", "headroom", 1, True)
    assert operand_policy(passes, None, "weight").tile_rows == 1
    rule = Rule(gradients=Operand(rounding="stochastic", center=False), weights=Operand(square=True))
    assert operand_policy(passes, rule, "gradient") == OperandPolicy("nvfp4", "stochastic", "headroom", 1, False)
    assert operand_policy(passes, rule, "weight").tile_rows == 16
    assert operand_policy(passes, rule, "activation") == operand_policy(passes, None, "activation")


def test_an_operands_format_comes_before_the_rules_and_that_before_the_passes() -> None:
    passes = (QuantizeFP4(format="nvfp4", weights=Operand(format="mxfp4")),)
    assert operand_policy(passes, None, "weight").format == "mxfp4"
    assert operand_policy(passes, Rule(format="identity"), "weight").format == "identity"
    rule = Rule(format="mxfp4", activations=Operand(format="nvfp4"))
    assert operand_policy(passes, rule, "activation").format == "nvfp4"
    assert operand_policy(passes, rule, "gradient").format == "mxfp4"


def test_a_rule_centres_what_the_pass_leaves_alone() -> None:
    passes = (MeanCenter(gradients=False), QuantizeFP4())
    assert not operand_policy(passes, None, "gradient").center
    assert operand_policy(passes, Rule(gradients=Operand(center=True)), "gradient").center
    assert not operand_policy(passes, Rule(activations=Operand(center=False)), "activation").center


def test_scales_and_blocks_of_another_format_are_not_inherited() -> None:
    passes = (QuantizeFP4(activations=Operand(scale="four_six"), weights=Operand(square=True)),)
    assert operand_policy(passes, Rule(format="mxfp4"), "activation").scale == "even"
    assert operand_policy(passes, Rule(format="mxfp4"), "weight").tile_rows == 1
    assert operand_policy(passes, Rule(format="nvfp4"), "activation").scale == "four_six"
    rule = Rule(format="mxfp4", activations=Operand(scale="floor"), weights=Operand(square=True))
    assert operand_policy(passes, rule, "activation").scale == "floor"
    assert operand_policy(passes, rule, "weight").tile_rows == 32


@pytest.mark.parametrize(
    ("passes", "rules"),
    [
        ((MeanCenter(mode="paper"), QuantizeFP4()), (Rule(gemms=("fprop",), hadamard=True),)),
        ((MeanCenter(mode="paper"), Hadamard(), QuantizeFP4()), (Rule(gemms=("wgrad",), hadamard=False),)),
        ((MeanCenter(activations=False, gradients=False, mode="paper"), Hadamard(), QuantizeFP4()), ()),
        ((QuantizeFP4(gradients=Operand(scale="headroom")),), (Rule(gemms=("fprop",), format="mxfp4"),)),
    ],
)
def test_what_is_asked_of_no_gemm_is_not_refused(passes: tuple[PassConfig, ...], rules: tuple[Rule, ...]) -> None:
    validate(passes, rules)


def test_which_gemms_are_transformed() -> None:
    passes = (Hadamard(), QuantizeFP4())
    assert [transforms(passes, None, role) for role in ("fprop", "dgrad", "wgrad")] == [False, False, True]
    assert transforms(passes, Rule(hadamard=True), "fprop")
    assert not transforms(passes, Rule(hadamard=False), "wgrad")
    assert transforms(passes, Rule(), "wgrad")
    assert not transforms((QuantizeFP4(),), None, "wgrad")


NEAREST = QuantizeFP4(gradients=Operand(rounding="nearest"))


@pytest.mark.parametrize(
    ("passes", "rules", "expected"),
    [
        ((QuantizeFP4(),), (), True),
        ((NEAREST,), (), False),
        ((NEAREST,), (Rule(weights=Operand(rounding="stochastic")),), True),
        ((QuantizeFP4(format="identity"),), (), False),
        ((MeanCenter(),), (), False),
        ((), (Rule(gradients=Operand(rounding="stochastic")),), False),
    ],
)
def test_when_a_graph_needs_a_seed(passes: tuple[PassConfig, ...], rules: tuple[Rule, ...], expected: bool) -> None:
    assert rounds_stochastically(passes, rules) is expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_together(recipe: str) -> None:
    validate(RECIPES[recipe], ())


@pytest.mark.parametrize(
    ("passes", "rules", "message"),
    [
        (
            (QuantizeFP4(format="mxfp4", weights=Operand(scale="amax")),),
            (),
            "cannot be done: weights: mxfp4 has no scale rule 'amax'; its rules are floor, ceil, rceil, even",
        ),
        (
            (QuantizeFP4(),),
            (Rule(layers="up"), Rule(layers="down", gemms=("wgrad",), gradients=Operand(scale="ceil"))),
            "by the rule for wgrad of layers 'down' cannot be done: gradients: nvfp4 has no scale rule 'ceil'",
        ),
        (
            (QuantizeFP4(gradients=Operand(scale="four_six")),),
            (),
            "scale 'four_six' weighs errors of rounding to nearest: not for stochastic rounding",
        ),
        (
            (MeanCenter(mode="paper"), Hadamard(), QuantizeFP4()),
            (),
            "use mode 'hp' or 'requant', or leave Hadamard out",
        ),
        ((MeanCenter(mode="paper"), QuantizeFP4()), (Rule(hadamard=True, last_blocks=2),), "the last 2 blocks"),
        (
            (QuantizeFP4(),),
            (Rule(activations=Operand(center=True)),),
            "center=True needs MeanCenter(...) among the passes",
        ),
        ((MeanCenter(), QuantizeFP4(weights=Operand(center=True))), (), "a weight has no token mean to take out"),
    ],
)
def test_what_does_not_go_together_is_refused(
    passes: tuple[PassConfig, ...], rules: tuple[Rule, ...], message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        validate(passes, rules)
    assert message in str(caught.value)
