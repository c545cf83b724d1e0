"""spectral::scaled_mm against fp64 products of the dequantised operands."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile.ops.dequantize import dequantize
from spectral_compile.ops.quantize import quantize
from spectral_compile.ops.scaled_mm import scaled_mm
from tests.fake_kernels import assert_fake_agrees

op = torch.ops.spectral.scaled_mm.default
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
M, N, K = 19, 37, 70
LAYOUTS = list(itertools.product([True, False], repeat=2))
SPLITS = ["nothing", "right", "left and right"]


def operand(across: int, k: int, k_last: bool, format: str, tile_rows: int = 16) -> tuple[Tensor, ...]:
    """A matrix [across, k] in codes; in 16 x 16 blocks, so that it may be stored the other way round."""
    x = torch.randn(across, k) if k_last else torch.randn(k, across)
    return quantize(x, None, None, None, format, 1, tile_rows, 0)


def exact(q: tuple[Tensor, ...], across: int, k: int, k_last: bool, format: str) -> Tensor:
    values = dequantize(*q, format, *((across, k) if k_last else (k, across))).double()
    return values if k_last else values.t()


def vectors(split: str, m: int, n: int) -> tuple[Tensor | None, Tensor | None]:
    left = torch.randn(m) if split == "left and right" else None
    return left, None if split == "nothing" else torch.randn(n)


@pytest.mark.parametrize(("a_k_last", "b_k_last"), LAYOUTS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("format", ["nvfp4", "identity"])
def test_product_of_the_dequantised_operands_plus_rank_one(
    a_k_last: bool, b_k_last: bool, split: str, format: str
) -> None:
    a, b = operand(M, K, a_k_last, format), operand(N, K, b_k_last, format)
    left, right = vectors(split, M, N)
    got = scaled_mm(*a, *b, left, right, M, N, K, a_k_last, b_k_last, format, "fp32", torch.float32)

    a64, b64 = exact(a, M, K, a_k_last, format), exact(b, N, K, b_k_last, format).t()
    rank_one = torch.zeros(M, N, dtype=torch.float64)
    if right is not None:
        rank_one += (torch.ones(M) if left is None else left)[:, None].double() * right.double()
    rounding = 2**-23 * ((K + 4) * (a64.abs() @ b64.abs()) + rank_one.abs())
    assert got.shape == (M, N)
    assert ((got - (a64 @ b64 + rank_one)).abs() <= rounding).all()


def test_one_set_of_codes_of_a_weight_serves_fprop_and_dgrad() -> None:
    """Y = X W' contracts in-features, dX = dY W out-features; the weight [out, in] is stored once."""
    weight = operand(N, K, True, "nvfp4")
    w = exact(weight, N, K, True, "nvfp4")
    x, dy = operand(M, K, True, "nvfp4", tile_rows=1), operand(M, N, True, "nvfp4", tile_rows=1)
    y = scaled_mm(*x, *weight, None, None, M, N, K, True, True, "nvfp4", "fp32", torch.float32)
    dx = scaled_mm(*dy, *weight, None, None, M, K, N, True, False, "nvfp4", "fp32", torch.float32)
    torch.testing.assert_close(y.double(), exact(x, M, K, True, "nvfp4") @ w.t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx.double(), exact(dy, M, N, True, "nvfp4") @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_result_is_the_fp32_result_rounded_once_rank_one_included(out_dtype: torch.dtype) -> None:
    a, b = operand(M, K, True, "nvfp4"), operand(N, K, True, "nvfp4")
    tail = (None, torch.randn(N) * 100, M, N, K, True, True, "nvfp4", "bf16")
    narrow = scaled_mm(*a, *b, *tail, out_dtype)
    assert torch.equal(narrow, scaled_mm(*a, *b, *tail, torch.float32).to(out_dtype))


@pytest.mark.parametrize("poisoned", ["a", "b"])
def test_a_poisoned_operand_makes_the_whole_product_nan(poisoned: str) -> None:
    a, b = (quantize(torch.randn(8, 40), None, None, None, "nvfp4", 1, 1, 0) for _ in range(2))
    bad = torch.zeros(8, 40)
    bad[3, 3] = torch.inf
    if poisoned == "a":
        a = quantize(bad, None, None, None, "nvfp4", 1, 1, 0)
    else:
        b = quantize(bad, None, None, None, "nvfp4", 1, 1, 0)
    got = scaled_mm(*a, *b, None, None, 8, 8, 40, True, True, "nvfp4", "fp32", torch.bfloat16)
    assert got.isnan().all()


@pytest.mark.parametrize("sizes", [(0, 5, 16), (5, 0, 16), (4, 3, 0)], ids=str)
def test_empty_products_are_zeros_plus_the_right_vector(sizes: tuple[int, int, int]) -> None:
    m, n, k = sizes
    a, b, right = operand(m, k, True, "nvfp4"), operand(n, k, True, "nvfp4"), torch.randn(n)
    got = scaled_mm(*a, *b, None, right, m, n, k, True, True, "nvfp4", "fp32", torch.float32)
    assert torch.equal(got, right.expand(m, n))


@pytest.mark.parametrize(("a_k_last", "b_k_last"), LAYOUTS)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("format", ["nvfp4", "identity"])
def test_the_fake_kernel_agrees(a_k_last: bool, b_k_last: bool, split: str, format: str) -> None:
    for m, n, k in ((M, N, K), (1, 1, 1), (0, 4, 16)):
        a, b = operand(m, k, a_k_last, format), operand(n, k, b_k_last, format)
        for dtype in (torch.bfloat16, torch.float32):
            tail = (*vectors(split, m, n), m, n, k, a_k_last, b_k_last, format, "fp32", dtype)
            assert_fake_agrees(op, *a, *b, *tail)


def test_opcheck() -> None:
    a, b = operand(M, K, True, "nvfp4"), operand(N, K, False, "nvfp4")
    tail = (torch.randn(M), torch.randn(N), M, N, K, True, False, "nvfp4", "fp32", torch.float32)
    opcheck(op, (*a, *b, *tail), test_utils=OPCHECKS)
