"""The carrier "fp8", interpreted, and codes turned round: bits as in `formats/e5m2.py`, products to their rounding."""

import itertools

import pytest
import torch

from spectral_compile.formats import e2m1, e5m2
from spectral_compile.lowering.triton import multiply
from spectral_compile.lowering.triton.configs import Config
from spectral_compile.lowering.triton.operands import operand
from spectral_compile.ops.scaled_mm import scaled_mm as reference
from tests.lowering.triton.product_cases import assert_right, computed, product, quantized

pytestmark = pytest.mark.skipif("not __import__('triton').knobs.runtime.interpret", reason="see conftest.py")

LAYOUTS = list(itertools.product((True, False), repeat=2))
MXFP4 = ("mxfp4", "mxfp4")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiply, "choose", lambda *_: Config(32, 64, 64, num_warps=4, num_stages=1))


@pytest.fixture(autouse=True)
def _nothing_lost() -> None:
    multiply.lost_blocks(torch.device("cpu")).zero_()


def lost() -> int:
    return int(multiply.lost_blocks(torch.device("cpu")))


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 40, 100)])
def test_products_in_fp8(shape: tuple, k_last: tuple, square: bool) -> None:
    assert_right(product(shape, MXFP4, k_last, (square, square), carrier="fp8"))
    assert lost() == 0  # the scales are within 14 binades


def test_a_term_and_a_narrow_result() -> None:
    term = (torch.randn(33), torch.randn(70))
    assert_right(product((33, 70, 96), MXFP4, term=term, carrier="fp8", out_dtype=torch.bfloat16))


def spread_out(rows: int, blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales, these over all the binades there are in a row and beyond the span of E5M2."""
    codes = torch.randint(256, (rows, blocks * 16), dtype=torch.uint8)
    codes[0, 16:32] = 0x08  # -0 and 0: a block that has nothing to lose
    return codes, torch.randint(90, 150, (rows, blocks), dtype=torch.uint8).view(torch.float8_e8m0fnu)


def test_values_and_lost_blocks_are_the_references() -> None:
    codes, scales = spread_out(33, 7)
    expected, expected_lost = e5m2.to_e5m2(codes, scales)
    x = operand(codes, scales, torch.ones(()), "mxfp4", True)
    values, tops = multiply._in_e5m2(x, 33, 7 * 32, 32, 64)
    assert values.shape == (64, 256)
    assert torch.equal(values[:33, :224].view(torch.uint8), expected.view(torch.uint8))
    assert values.float().sum() == values[:33, :224].float().sum()
    assert torch.equal(tops, e5m2.tops(scales))
    assert lost() == expected_lost > 0


def test_values_are_exact_over_the_whole_span_and_not_beyond() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(2).repeat(e5m2.SPAN + 2)[None]
    scales = (200 - torch.arange(e5m2.SPAN + 2, dtype=torch.uint8))[None].view(torch.float8_e8m0fnu)
    values, blocks = e5m2.to_e5m2(e2m1.pack(codes), scales)
    relative = torch.ldexp(
        e2m1.decode(codes).unflatten(-1, (-1, 32)), e5m2.LARGEST - torch.arange(e5m2.SPAN + 2)[:, None]
    )
    same = (values.float().unflatten(-1, (-1, 32)) == relative).all(-1)[0]
    assert same.tolist() == [True] * (e5m2.SPAN + 1) + [False]
    assert blocks == 1


def test_a_product_with_lost_blocks_is_the_references() -> None:
    (a, b), tensor_scale = (spread_out(33, 4), spread_out(40, 4)), torch.ones(())
    how = (33, 40, 128, True, True, *MXFP4, "fp8", torch.float32)
    got = computed((*a, tensor_scale, *b, tensor_scale, None, None, *how))
    expected = e5m2.product(a, b)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert lost() > 0


def test_a_poisoned_block_makes_its_row_of_the_product_nan() -> None:
    arguments = product((8, 8, 64), MXFP4, carrier="fp8")
    arguments[1].view(torch.uint8)[3, 1] = 255
    got = computed(arguments)
    assert got.isnan().all(1).tolist() == [row == 3 for row in range(8)]
    assert got.isnan().sum() == 8


@pytest.mark.parametrize("bytes", [(3, 6), (248, 252)])
def test_the_smallest_and_the_largest_scales(bytes: tuple[int, int]) -> None:
    """Their product underflows, or overflows; one with its inverse does neither."""
    arguments = list(product((8, 8, 64), MXFP4, carrier="fp8"))
    arguments[1] = torch.randint(*bytes, (8, 2), dtype=torch.uint8).view(torch.float8_e8m0fnu)
    arguments[4] = (254 - arguments[1].view(torch.uint8)).view(torch.float8_e8m0fnu)
    got = computed(tuple(arguments))
    assert got.isfinite().all()
    torch.testing.assert_close(got, reference(*arguments))


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize(("k", "extent"), [(1, 1), (33, 70), (100, 129), (64, 128)])
def test_square_blocks_turned_round(k: int, extent: int, format: str) -> None:
    codes, scales, tensor_scale = quantized(k, extent, format, square=True)
    turned = multiply._with_k_last(operand(codes, scales, tensor_scale, format, False), extent, k)
    expected = e2m1.unpack(codes)[:, :extent].t()
    got = e2m1.unpack(turned.codes)
    assert torch.equal(got[:, :k], expected)
    assert not got[:, k:].any()
    assert torch.equal(turned.scales, scales.view(torch.uint8).t())
