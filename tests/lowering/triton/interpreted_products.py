"""The products' kernels, interpreted, against the reference: equal to the rounding of fp32 sums."""

import itertools

import pytest
import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering.triton import configs, products
from spectral_compile.lowering.triton.configs import Config
from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.scaled_mm import scaled_mm as reference
from tests.fake_kernels import equal_bits

pytestmark = pytest.mark.skipif("not __import__('triton').knobs.runtime.interpret", reason="see conftest.py")

# Scale bytes that are finite and not negative; MXFP4's such that products stay within fp32.
SCALE_BYTES = {"nvfp4": (0, 0x7F), "mxfp4": (120, 134)}
# The interpreter does not round to bf16, it truncates.
ROUNDING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
LAYOUTS = list(itertools.product((True, False), repeat=2))


def quantized(rows: int, cols: int, format: str, square: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes and scales for [rows, cols], in the padding too."""
    kind = FORMATS[format]
    blocks, tiles = -(-cols // kind.block), -(-rows // (kind.block if square else 1))
    codes = torch.randint(256, (rows, blocks * kind.block // 2), dtype=torch.uint8)
    scales = torch.randint(*SCALE_BYTES[format], (tiles, blocks), dtype=torch.uint8)
    return codes, scales.view(kind.scale_dtype), torch.tensor(0.0037 if format == "nvfp4" else 1.0)


def product(
    shape: tuple[int, int, int],
    formats: tuple[str, str] = ("nvfp4", "nvfp4"),
    k_last: tuple[bool, bool] = (True, True),
    square: tuple[bool, bool] = (False, False),
    term: tuple[Tensor | None, Tensor | None] = (None, None),
    carrier: str = "bf16",
    out_dtype: torch.dtype = torch.float32,
) -> tuple:
    """Arguments of `spectral::scaled_mm`."""
    m, n, k = shape
    a = quantized(*((m, k) if k_last[0] else (k, m)), formats[0], square[0])
    b = quantized(*((n, k) if k_last[1] else (k, n)), formats[1], square[1])
    return (*a, *b, *term, m, n, k, *k_last, *formats, carrier, out_dtype)


def computed(arguments: tuple) -> Tensor:
    m, n, out_dtype = arguments[8], arguments[9], arguments[-1]
    out = torch.full((m, n), 77, dtype=out_dtype)
    products.scaled_mm(*arguments, out=(out,))
    return out


def assert_right(arguments: tuple) -> None:
    """To the rounding of sums, in whatever order, and of the result."""
    got, expected = computed(arguments).double(), reference(*arguments[:-1], torch.float32).double()
    magnitude = reference(*_magnitudes(arguments), torch.float32).double()
    k, out_dtype = arguments[10], arguments[-1]
    bound = 2.0**-24 * (k + 8) * magnitude + ROUNDING[out_dtype] * (expected.abs() + 2.0**-24 * k * magnitude)
    assert bool(((got - expected).abs() <= bound + 1e-38).all())


def _magnitudes(arguments: tuple) -> tuple:
    """The same product of magnitudes."""
    a_codes, a_scales, a_tensor, b_codes, b_scales, b_tensor, left, right, *rest = arguments[:-1]
    terms = (x if x is None else x.abs() for x in (left, right))
    return (a_codes & 0x77, a_scales, a_tensor, b_codes & 0x77, b_scales, b_tensor, *terms, *rest)


@pytest.fixture(params=["fused", "carry"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute a product on bf16."""
    small = Config(32, 64, 64, num_warps=4, num_stages=1, how=request.param)  # ragged, and more than one tile
    monkeypatch.setattr(products, "choose", lambda *_: small)
    return request.param


@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("formats", list(itertools.product(FORMATS, repeat=2)))
def test_products_in_bf16(formats: tuple, k_last: tuple, how: str) -> None:
    assert_right(product((33, 70, 100), formats, k_last))


@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 40, 17), (64, 32, 128)])
def test_shapes(shape: tuple, k_last: tuple, how: str) -> None:
    assert_right(product(shape, k_last=k_last))


@pytest.mark.parametrize("k_last", LAYOUTS)
@pytest.mark.parametrize("format", FORMATS)
def test_square_blocks(format: str, k_last: tuple, how: str) -> None:
    assert_right(product((33, 70, 100), (format, format), k_last, square=(True, True)))


@pytest.mark.parametrize("out_dtype", list(ROUNDING))
@pytest.mark.parametrize(
    "term",
    [
        (None, torch.linspace(-3e3, 2e3, 70)),  # a bias
        (torch.linspace(-1, 2, 33), torch.linspace(-3e3, 2e3, 70)),
        (torch.linspace(-1, 2, 33).bfloat16(), torch.linspace(-3e3, 2e3, 70).bfloat16()),
        (torch.randn(33, 3), torch.randn(3, 70)),
        (torch.randn(3, 33).t(), torch.randn(70, 3).t()),
    ],
    ids=["bias", "vectors", "bf16", "rank 3", "strided"],
)
def test_the_low_rank_term_and_the_result(term: tuple, out_dtype: torch.dtype, how: str) -> None:
    if how == "carry" and out_dtype == torch.bfloat16:
        pytest.skip("a bf16 product of torch's is rounded twice")
    left, right = term
    exact = (left if left is None else left.float(), right.float())  # the reference multiplies in the term's own type
    arguments = product((33, 70, 16), term=exact, out_dtype=out_dtype)
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
    got = torch.empty(256, 512, dtype=dtype)
    products.carry(codes, scales, format, 256, 512, dtype, out=(got,))
    expected = carried(codes, scales, format, 512)
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    # The interpreter, not the hardware, loses subnormal bf16 numbers.
    held = ~nan & ((expected == 0) | (expected.abs() >= torch.finfo(torch.bfloat16).tiny))
    assert equal_bits(got[held].float(), expected[held])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (40, 64), (33, 257)])
def test_dequantize_is_the_references(rows: int, cols: int, format: str) -> None:
    for square in (False, True):
        arguments = (*quantized(rows, cols, format, square), format, rows, cols)
        got = torch.empty(rows, cols)
        products.dequantize(*arguments, out=(got,))
        assert torch.equal(got, torch.ops.spectral.dequantize(*arguments))


def test_the_table_has_a_default_for_every_carrier_and_shape() -> None:
    for carrier, extent in configs.CONFIGS:
        m = configs.FEW if extent == "few" else configs.FEW + 1
        assert configs.choose(carrier, (9, 9), m, 4096) == configs.CONFIGS[carrier, extent][0]
