"""docs/what-is-quantised.md has every reason that the planner gives."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from spectral_compile import planner
from spectral_compile.graph import experts, provenance, roles

PAGE = (Path(__file__).parents[1] / "docs" / "what-is-quantised.md").read_text()
NO_REASONS = {roles._MIXED}


def sentences(source: str) -> Iterator[str]:
    """What code says in words: text with a space in it, less docstrings; of an f-string, its constant parts."""
    nodes = list(ast.walk(ast.parse(source)))
    # A docstring is an expression of its own, and an annotation may be a text.
    others = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    others |= {id(node.annotation) for node in nodes if isinstance(node, (ast.AnnAssign, ast.arg))}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in others:
            text = node.value.strip()
            if " " in text and text not in NO_REASONS:
                yield text


REASONS = [
    (module.__name__, reason)
    for module in (planner, experts, provenance, roles)
    for reason in sentences(Path(module.__file__).read_text())
]


def test_reasons_are_found_in_the_source() -> None:
    assert len(REASONS) >= 20
    assert ("spectral_compile.graph.roles", "router: its result is ranked (top-k)") in REASONS
    assert list(sentences('"""No reason."""\nx: "int | None" = f"{1} a reason"\ny = "word"')) == ["a reason"]


@pytest.mark.parametrize(("module", "reason"), REASONS, ids=lambda value: value[:40])
def test_the_page_has_it(module: str, reason: str) -> None:
    assert reason in PAGE, f"{module} gives a reason that docs/what-is-quantised.md does not explain"
