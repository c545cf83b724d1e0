"""The products' kernels, interpreted, against the reference: equal to the rounding of fp32 sums."""

import dataclasses
import itertools

import pytest
import torch

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton import configs, multiply
from spectral_compile.lowering.triton.configs import Config
from spectral_compile.lowering.triton.operands import operand
from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.scaled_mm import scaled_mm as reference
from tests.fake_kernels import equal_bits
from tests.lowering.triton.product_cases import ROUNDING, assert_right, computed, product

pytestmark = pytest.mark.skipif("not __import__('triton').knobs.runtime.interpret", reason="see conftest.py")

LAYOUTS = list(itertools.product((True, False), repeat=2))


SMALL = Config(32, 64, 64, num_warps=4, num_stages=1)  # more than one tile of small matrices, the last one ragged


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiply, "choose", lambda *_: SMALL)


@pytest.fixture(params=["fused", "carry"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute a product in bf16."""
    monkeypatch.setattr(multiply, "choose", lambda *_: dataclasses.replace(SMALL, how=request.param))
    return request.param


@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=2)))
def test_products_in_bf16(formats: tuple, k_last: tuple) -> None:
    assert_right(product((33, 40, 100), formats, k_last))


@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 70, 50), (64, 32, 128)])
def test_shapes(shape: tuple, k_last: tuple, how: str) -> None:
    assert_right(product(shape, k_last=k_last))


@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("format", FORMATS)
def test_square_blocks(format: str, k_last: tuple) -> None:
    assert_right(product((33, 40, 100), (format, format), k_last, square=(True, True)))


@pytest.mark.parametrize("out_dtype", list(ROUNDING))
def test_the_result_in_each_type(out_dtype: torch.dtype) -> None:
    assert_right(product((33, 70, 16), term=(torch.randn(33), torch.randn(70)), out_dtype=out_dtype))


@pytest.mark.parametrize(
    "term",
    [
        (None, torch.linspace(-3e3, 2e3, 70)),  # a bias
        (torch.linspace(-1, 2, 33).bfloat16(), torch.linspace(-3e3, 2e3, 70).bfloat16()),
        (torch.randn(3, 33).t(), torch.randn(70, 3).t()),
    ],
    ids=["bias", "bf16", "rank 3, strided"],
)
def test_the_low_rank_term(term: tuple, how: str) -> None:
    left, right = term
    exact = (left if left is None else left.float(), right.float())  # the reference multiplies in the term's own type
    arguments = product((33, 70, 16), term=exact)
    assert_right(arguments)
    assert torch.equal(computed((*arguments[:6], left, right, *arguments[8:])), computed(arguments))


def test_strided_codes_and_scales(how: str) -> None:
    arguments = list(product((33, 70, 64)))
    plain = computed(tuple(arguments))
    for i in (0, 1, 3, 4):
        arguments[i] = arguments[i].t().contiguous().t()
    assert torch.equal(computed(tuple(arguments)), plain)


def test_a_poisoned_operand_makes_the_product_nan(how: str) -> None:
    arguments = list(product((8, 8, 32), term=(None, torch.ones(8))))
    arguments[2] = torch.tensor(float("nan"))
    assert computed(tuple(arguments)).isnan().all()


def test_a_poisoned_block_makes_its_row_of_the_product_nan(how: str) -> None:
    arguments = product((8, 8, 64), ("mxfp4", "mxfp4"))
    arguments[1].view(torch.uint8)[3, 1] = 255
    assert computed(arguments).isnan().all(1).tolist() == [row == 3 for row in range(8)]
    assert computed(arguments).isnan().sum() == 8


def test_tensor_scales_whose_product_underflows_still_scale_the_product() -> None:
    arguments = list(product((4, 4, 64)))
    arguments[2] = arguments[5] = torch.tensor(1e-22)
    got = computed(tuple(arguments))
    assert got.abs().max() > 0
    torch.testing.assert_close(got, reference(*arguments), rtol=1e-2, atol=1e-44)


@pytest.mark.parametrize(
    ("carrier", "formats", "k_last"),
    [
        ("fp8", ("nvfp4", "mxfp4"), (True, True)),
        ("native", ("nvfp4",) * 2, (True, False)),
        ("native", ("nvfp4", "mxfp4"), (True, True)),
    ],
)
def test_a_carrier_that_cannot_carry_the_operands_is_not_taken(carrier: str, formats: tuple, k_last: tuple) -> None:
    arguments = product((33, 40, 64), formats, k_last, carrier=carrier)
    assert torch.equal(computed(arguments), computed((*arguments[:-2], "bf16", torch.float32)))


def test_nothing_to_sum() -> None:
    term = (torch.randn(3), torch.randn(5))
    assert torch.equal(computed(product((3, 5, 0), term=term)), term[0][:, None] * term[1])
    assert computed(product((0, 5, 16))).shape == (0, 5)


def test_identity_and_fp32_are_the_references() -> None:
    wide = (torch.randn(9, 20), torch.empty(0), torch.ones(()))
    arguments = (*wide, *wide, None, None, 9, 9, 20, True, True, "identity", "identity", "fp32", torch.float32)
    assert torch.equal(computed(arguments), reference(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format", FORMATS)
def test_every_code_with_every_scale_is_exact(format: str, dtype: torch.dtype) -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    blocks = 512 // FORMATS[format].block
    codes = every_byte.repeat(256, 1)
    scales = every_byte.repeat_interleave(blocks).view(256, blocks).view(FORMATS[format].scale_dtype)
    got = multiply.carried(operand(codes, scales, scales, format, True), 256, 512, dtype)
    expected = carried(codes, scales, format, 512)
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    # The interpreter, not the hardware, loses subnormal bf16 numbers.
    held = ~nan & ((expected == 0) | (expected.abs() >= torch.finfo(torch.bfloat16).tiny))
    assert equal_bits(got[held].float(), expected[held])


def test_the_table_has_a_default_for_every_carrier_and_shape() -> None:
    for carrier, extent in configs.CONFIGS:
        m = configs.FEW if extent == "few" else configs.FEW + 1
        assert configs.choose(carrier, (9, 9), m, 4096) == configs.CONFIGS[carrier, extent][0]
