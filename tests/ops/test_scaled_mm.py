"""spectral::scaled_mm against fp64 products of the dequantised operands."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile.ops.dequantize import dequantize
from spectral_compile.ops.scaled_mm import scaled_mm
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes
from tests.ops.operands import EVERY_FORMAT, quantized, square

op = torch.ops.spectral.scaled_mm.default
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
M, N, K = 19, 37, 70
LAYOUTS = list(itertools.product([True, False], repeat=2))
FORMAT_PAIRS = list(itertools.product(EVERY_FORMAT, repeat=2))
SPLITS = ["nothing", "right", "left and right", "rank 3", "rank 1"]
PLAIN = ("nvfp4", "nvfp4")


def operand(across: int, k: int, k_last: bool, format: str, tile_rows: int | None = None) -> tuple[Tensor, ...]:
    """A matrix [across, k] in codes; in square blocks, so that it may be stored the other way round."""
    x = torch.randn(across, k) if k_last else torch.randn(k, across)
    return quantized(x, format, tile_rows=square(format) if tile_rows is None else tile_rows)


def exact(q: tuple[Tensor, ...], across: int, k: int, k_last: bool, format: str) -> Tensor:
    values = dequantize(*q, format, *((across, k) if k_last else (k, across))).double()
    return values if k_last else values.t()


def low_rank(split: str, m: int, n: int) -> tuple[Tensor | None, Tensor | None]:
    """left and right, in all the forms that they may have."""
    if split.startswith("rank"):
        rank = int(split[-1])
        return torch.randn(m, rank), torch.randn(rank, n)
    left = torch.randn(m) if split == "left and right" else None
    return left, None if split == "nothing" else torch.randn(n)


def added(left: Tensor | None, right: Tensor | None, m: int, n: int) -> tuple[Tensor, Tensor]:
    """The low-rank term in doubles, and the sum of its magnitudes."""
    if right is None:
        return torch.zeros(m, n).double(), torch.zeros(m, n).double()
    columns = torch.ones(m, 1) if left is None else left.view(m, -1)
    rows = right.view(-1, n)
    return columns.double() @ rows.double(), columns.abs().double() @ rows.abs().double()


@pytest.mark.parametrize(("a_k_last", "b_k_last"), LAYOUTS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("a_format", "b_format"), FORMAT_PAIRS)
def test_product_of_the_dequantised_operands_plus_the_low_rank_term(
    a_k_last: bool, b_k_last: bool, split: str, a_format: str, b_format: str
) -> None:
    a, b = operand(M, K, a_k_last, a_format), operand(N, K, b_k_last, b_format)
    left, right = low_rank(split, M, N)
    got = scaled_mm(*a, *b, left, right, M, N, K, a_k_last, b_k_last, a_format, b_format, "fp32", torch.float32)

    a64, b64 = exact(a, M, K, a_k_last, a_format), exact(b, N, K, b_k_last, b_format).t()
    term, magnitude = added(left, right, M, N)
    rounding = 2**-23 * ((K + 4) * (a64.abs() @ b64.abs()) + 4 * magnitude)
    assert got.shape == (M, N)
    assert ((got - (a64 @ b64 + term)).abs() <= rounding).all()


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
def test_one_set_of_codes_of_a_weight_serves_fprop_and_dgrad(format: str) -> None:
    """Y = X W' contracts in-features, dX = dY W out-features; the weight [out, in] is stored once."""
    weight = operand(N, K, True, format)
    w = exact(weight, N, K, True, format)
    x, dy = operand(M, K, True, format, tile_rows=1), operand(M, N, True, format, tile_rows=1)
    y = scaled_mm(*x, *weight, None, None, M, N, K, True, True, format, format, "fp32", torch.float32)
    dx = scaled_mm(*dy, *weight, None, None, M, K, N, True, False, format, format, "fp32", torch.float32)
    torch.testing.assert_close(y.double(), exact(x, M, K, True, format) @ w.t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx.double(), exact(dy, M, N, True, format) @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", SPLITS)
def test_a_narrow_result_is_the_fp32_result_rounded_once_low_rank_term_included(
    out_dtype: torch.dtype, split: str
) -> None:
    a, b = operand(M, K, True, "nvfp4"), operand(N, K, True, "nvfp4")
    left, right = low_rank(split, M, N)
    tail = (left, None if right is None else right * 100, M, N, K, True, True, *PLAIN, "bf16")
    narrow = scaled_mm(*a, *b, *tail, out_dtype)
    assert torch.equal(narrow, scaled_mm(*a, *b, *tail, torch.float32).to(out_dtype))


def test_tensor_scales_whose_product_underflows_are_applied_one_by_one() -> None:
    a, b = quantized(torch.full((2, 16), 1e-25)), quantized(torch.full((2, 16), 1e-17))
    got = scaled_mm(*a, *b, None, None, 2, 2, 16, True, True, *PLAIN, "fp32", torch.float32)
    assert (a[2] / 2688 * (b[2] / 2688)).item() == pytest.approx(0, abs=2**-148)
    torch.testing.assert_close(got, torch.full((2, 2), 16e-42), rtol=1e-3, atol=0)


@pytest.mark.parametrize("poisoned", ["a", "b"])
def test_a_poisoned_nvfp4_operand_makes_the_whole_product_nan(poisoned: str) -> None:
    a, b = (quantized(torch.randn(8, 40)) for _ in range(2))
    bad = torch.zeros(8, 40)
    bad[3, 3] = torch.inf
    if poisoned == "a":
        a = quantized(bad)
    else:
        b = quantized(bad)
    got = scaled_mm(*a, *b, None, None, 8, 8, 40, True, True, *PLAIN, "fp32", torch.bfloat16)
    assert got.isnan().all()


def test_a_poisoned_mxfp4_block_makes_the_results_nan_that_read_it() -> None:
    x = torch.randn(8, 40)
    x[3, 3] = torch.inf
    a, b = quantized(x, "mxfp4"), quantized(torch.randn(6, 40), "mxfp4")
    got = scaled_mm(*a, *b, None, None, 8, 6, 40, True, True, "mxfp4", "mxfp4", "fp32", torch.bfloat16)
    assert got.isnan().all(1).tolist() == [row == 3 for row in range(8)]
    assert got.isnan().sum() == 6


@pytest.mark.parametrize("sizes", [(0, 5, 16), (5, 0, 16), (4, 3, 0)], ids=str)
@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_empty_products_are_zeros_plus_the_right_vector(sizes: tuple[int, int, int], format: str) -> None:
    m, n, k = sizes
    a, b, right = operand(m, k, True, format), operand(n, k, True, format), torch.randn(n)
    got = scaled_mm(*a, *b, None, right, m, n, k, True, True, format, format, "fp32", torch.float32)
    assert torch.equal(got, right.expand(m, n))


@pytest.mark.parametrize("formats", [("nvfp8", "nvfp4"), ("nvfp4", "nvfp8")], ids=str)
def test_an_unknown_format_is_refused(formats: tuple[str, str]) -> None:
    a, b = operand(M, K, True, "nvfp4"), operand(N, K, True, "nvfp4")
    with pytest.raises(ValueError, match="'nvfp8' is none; formats are nvfp4, mxfp4"):
        scaled_mm(*a, *b, None, None, M, N, K, True, True, *formats, "fp32", torch.float32)


@pytest.mark.parametrize(("a_k_last", "b_k_last"), LAYOUTS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("a_format", "b_format"), FORMAT_PAIRS)
def test_the_fake_kernel_agrees(a_k_last: bool, b_k_last: bool, split: str, a_format: str, b_format: str) -> None:
    for m, n, k in ((M, N, K), (1, 1, 1), (0, 4, 16)):
        a, b = operand(m, k, a_k_last, a_format), operand(n, k, b_k_last, b_format)
        dtype = torch.bfloat16 if a_k_last else torch.float32
        tail = (*low_rank(split, m, n), m, n, k, a_k_last, b_k_last, a_format, b_format, "fp32", dtype)
        assert_fake_agrees(op, *a, *b, *tail)


@pytest.mark.parametrize(("a_format", "b_format"), FORMAT_PAIRS)
def test_one_trace_serves_all_sizes(a_format: str, b_format: str) -> None:
    def product(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
        quantize = torch.ops.spectral.quantize
        rule = {"nvfp4": "amax", "mxfp4": "floor", "identity": "amax"}
        qa = quantize(a, None, None, None, a_format, rule[a_format], 1, 1, False, 0)
        qb = quantize(b, None, None, None, b_format, rule[b_format], 0, 1, False, 0)
        sizes = (a.shape[0], b.shape[1], a.shape[1])
        return op(*qa, *qb, left, right, *sizes, True, True, a_format, b_format, "fp32", torch.bfloat16)

    def inputs(m: int, n: int, k: int, rank: int) -> tuple[Tensor, ...]:
        return torch.randn(m, k), torch.randn(k, n), torch.randn(m, rank), torch.randn(rank, n)

    assert_one_trace_serves_all_sizes(product, inputs(M, N, K, 3), inputs(20, 33, 50, 2))


@pytest.mark.parametrize("split", ["left and right", "rank 3"])
def test_opcheck(split: str) -> None:
    a, b = operand(M, K, True, "nvfp4"), operand(N, K, False, "mxfp4")
    tail = (*low_rank(split, M, N), M, N, K, True, False, "nvfp4", "mxfp4", "fp32", torch.float32)
    opcheck(op, (*a, *b, *tail), test_utils=OPCHECKS)
