"""Which layers a rule is about, and which rule counts."""

import pytest

from spectral_compile.recipes import Rule
from spectral_compile.rules import find_rule, last_blocks, selects, without_effect

PATHS = ("layers.0.mlp.up_proj", "layers.10.mlp.up_proj", "lm_head")


@pytest.mark.parametrize(
    ("pattern", "path", "selected"),
    [
        ("up", PATHS[0], True),
        ("head$", "lm_head", True),
        ("^head", "lm_head", False),
        (r"layers\.1\.", PATHS[1], False),
        ("LM_HEAD", "lm_head", False),
        ("", "", True),  # matches everything
    ],
)
def test_a_pattern_is_searched_anywhere_in_the_path(pattern: str, path: str, selected: bool) -> None:
    assert selects(Rule(layers=pattern), path, PATHS) is selected


def test_the_first_rule_that_matches_layer_and_gemm_counts() -> None:
    rules = [Rule(layers="head"), Rule(layers="mlp", gemms="wgrad"), Rule(gemms=["fprop", "wgrad"]), Rule(layers="up")]
    assert find_rule(rules, PATHS[0], "wgrad", PATHS) is rules[1]
    assert find_rule(rules, PATHS[0], "fprop", PATHS) is rules[2]
    assert find_rule(rules, PATHS[0], "dgrad", PATHS) is rules[3]
    assert find_rule(rules, PATHS[2], "dgrad", PATHS) is rules[0]
    assert find_rule(rules[1:], PATHS[2], "dgrad", PATHS) is None


def test_rules_without_effect_are_listed_in_order() -> None:
    rules = [Rule(layers="zz"), Rule(layers="up_proj"), Rule(layers="embed"), Rule(last_blocks=1)]
    assert without_effect(rules, PATHS) == [rules[0], rules[2]]
    assert without_effect(rules, ["lm_head"]) == rules
    assert without_effect([], PATHS) == []


MODELS = {
    "gpt": [f"layers.{i}.{part}" for i in range(12) for part in ("attention.q_proj", "mlp.up_proj")] + ["lm_head"],
    "hugging face": [f"model.layers.{i}.self_attn.q_proj" for i in range(6)] + ["lm_head"],
    "sequential": ["0", "1", "2", "3"],
    "experts": [f"layers.{i}.experts.{e}.up" for i in range(3) for e in range(8)],
    "encoder, longer decoder": [f"encoder.{i}.w" for i in range(2)] + [f"decoder.{i}.w" for i in range(4)],
    "one block": ["layers.0.up", "layers.0.down"],
    "not numbered": ["up", "down", "lm_head2", "a1.b"],
    "none": [],
}


@pytest.mark.parametrize(
    ("model", "count", "blocks"),
    [
        ("gpt", 2, ["layers.10", "layers.11"]),
        ("gpt", 0.15, ["layers.10", "layers.11"]),
        ("gpt", 0.01, []),
        ("one block", 0.15, []),
        ("gpt", 100, [f"layers.{i}" for i in range(12)]),
        ("hugging face", 1, ["model.layers.5"]),
        ("sequential", 2, []),
        ("experts", 1, ["layers.2"]),
        ("encoder, longer decoder", 1, ["decoder.3"]),
        ("not numbered", 1, []),
        ("none", 1, []),
    ],
)
def test_last_blocks(model: str, count: int | float, blocks: list[str]) -> None:
    assert last_blocks(MODELS[model], count) == blocks


def test_last_blocks_select_whole_blocks_and_no_namesake() -> None:
    layers = [f"layers.{i}.{part}" for i in range(12) for part in ("up", "down")] + ["layers.1"]
    rule = Rule(last_blocks=1)
    assert [layer for layer in layers if selects(rule, layer, layers)] == ["layers.11.up", "layers.11.down"]
    assert not selects(Rule(last_blocks=11), "layers.0.up", layers)
    assert selects(Rule(last_blocks=11), "layers.1", layers)
