"""Rules on layer paths."""

import pytest

from spectral_compile.rules import compile_pattern, first_match, unmatched

PATHS = ("layers.0.mlp.up_proj", "layers.10.mlp.up_proj", "lm_head")


@pytest.mark.parametrize(
    ("patterns", "path", "match"),
    [
        (["up", "mlp"], PATHS[0], "up"),  # the first pattern, not the first place in the path
        (["mlp", "up"], PATHS[0], "mlp"),
        (["head$"], "lm_head", "head$"),
        (["^head"], "lm_head", None),
        ([r"layers\.1\."], PATHS[1], None),
        (["LM_HEAD"], "lm_head", None),
        ([""], "", ""),  # matches everything, and is not taken for no match
        ([], "lm_head", None),
    ],
)
def test_first_pattern_found_anywhere_in_the_path(patterns: list[str], path: str, match: str | None) -> None:
    assert first_match(patterns, path) == match


def test_patterns_that_match_no_path_are_listed_in_order() -> None:
    assert unmatched(["zz", "up_proj", "embed", "lm"], iter(PATHS)) == ("zz", "embed")
    assert unmatched(["a"], []) == ("a",)
    assert unmatched([], PATHS) == ()


@pytest.mark.parametrize("pattern", ["(", "[", "*a", "(?P<x"])
def test_a_wrong_pattern_is_a_value_error_that_quotes_it(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression") as caught:
        compile_pattern(pattern)
    assert repr(pattern) in str(caught.value)
