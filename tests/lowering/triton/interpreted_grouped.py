"""Grouped products, interpreted, against the reference."""

import pytest
import torch

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton import multiply, products
from spectral_compile.lowering.triton.configs import Config
from spectral_compile.ops.scaled_grouped_mm import scaled_grouped_mm as reference
from tests.ops.groups import OFFSETS, TOKENS, K, N, grouped, ragged

pytestmark = pytest.mark.skipif("not __import__('triton').knobs.runtime.interpret", reason="see conftest.py")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiply, "GROUPED", Config(16, 64, 64, num_warps=4, num_stages=1))


def assert_right(arguments: tuple) -> None:
    expected = reference(*arguments)
    got = torch.full_like(expected, 77)
    products.scaled_grouped_mm(*arguments, out=(got,))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize("term", [(False, False), (False, True), (True, True)], ids=["plain", "row", "outer"])
@pytest.mark.parametrize(("format", "b_k_last"), [("nvfp4", False), ("mxfp4", True)])
def test_groups_of_rows(format: str, b_k_last: bool, term: tuple[bool, bool], offsets: tuple[int, ...]) -> None:
    assert_right(grouped(format, b_k_last, offsets, *term))


@pytest.mark.parametrize("offsets", OFFSETS.values(), ids=list(OFFSETS))
@pytest.mark.parametrize(("rank", "hadamard"), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize("format", FORMATS)
def test_ragged_k(format: str, rank: int, hadamard: bool, offsets: tuple[int, ...]) -> None:
    assert_right(ragged(torch.randn(TOKENS, K), torch.randn(TOKENS, N), format, offsets, rank, hadamard))


def test_what_is_nobodys_is_zero_and_a_poisoned_expert_is_alone() -> None:
    arguments = grouped("nvfp4", True, OFFSETS["a rest"], right=True)
    arguments[2][1] = torch.nan
    assert_right(arguments)


def test_operands_that_triton_has_no_kernel_for_run_as_the_reference() -> None:
    arguments = list(grouped("nvfp4", True, OFFSETS["a rest"]))
    arguments[-2] = "fp32"
    assert_right(tuple(arguments))
