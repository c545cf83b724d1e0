"""spectral::hadamard: both operands of a product transformed along the axis that it contracts."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile.formats.hadamard import hadamard as hadamard_transform
from spectral_compile.ops.hadamard import hadamard
from spectral_compile.ops.scaled_mm import scaled_mm
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes, equal_bits
from tests.ops.operands import EVERY_FORMAT, all_equal, quantized

op = torch.ops.spectral.hadamard.default
AXES = pytest.mark.parametrize("axis", [0, 1])


@AXES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_the_transform_contiguous_in_fp32(axis: int, dtype: torch.dtype) -> None:
    for x in (torch.randn(20, 35).to(dtype), torch.randn(35, 20).to(dtype).t()):
        got = hadamard(x, axis)
        assert got.is_contiguous()
        assert got.dtype == torch.float32
        assert equal_bits(got, hadamard_transform(x, axis))


@pytest.mark.parametrize("k", [16, 50])
@pytest.mark.parametrize(("a_axis", "b_axis"), [(1, 0), (1, 1), (0, 0), (0, 1)])
def test_a_product_of_transformed_operands_is_the_product(k: int, a_axis: int, b_axis: int) -> None:
    a, b = torch.randn(9, k), torch.randn(k, 7)
    a_stored, b_stored = a if a_axis == 1 else a.t(), b if b_axis == 0 else b.t()
    ta, tb = op(a_stored, a_axis), op(b_stored, b_axis)
    product = (ta if a_axis == 1 else ta.t()) @ (tb if b_axis == 0 else tb.t())
    torch.testing.assert_close(product, a @ b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("format", EVERY_FORMAT)
@pytest.mark.parametrize("tokens", [64, 50])
def test_a_product_of_quantised_transformed_operands_is_near_the_product(format: str, tokens: int) -> None:
    """dW = dY' X contracts tokens. The padding to sixteens holds values after a transform: k counts it."""
    dy, x = torch.randn(tokens, 20), torch.randn(tokens, 30)
    exact = dy.t() @ x
    k = tokens + -tokens % 16
    a, b = (quantized(t, format, axis=0, hadamard=True) for t in (dy, x))
    got = scaled_mm(*a, *b, None, None, 20, 30, k, True, True, format, format, "fp32", torch.float32)
    error = ((got - exact).norm() / exact.norm()).item()
    assert error < (1e-5 if format == "identity" else 0.3)
    cut = scaled_mm(*a, *b, None, None, 20, 30, tokens, True, True, format, format, "fp32", torch.float32)
    assert torch.equal(cut, got) == (tokens == k)


@AXES
def test_quantise_transforms_as_this_operator_does_and_rounds_to_bf16(axis: int) -> None:
    x = torch.randn(40, 70)
    for format in ("nvfp4", "mxfp4"):
        expected = quantized(hadamard(x, axis).bfloat16(), format, axis=axis)
        assert all_equal(quantized(x, format, axis=axis, hadamard=True), expected)


@AXES
def test_the_fake_kernel_agrees(axis: int) -> None:
    for x in (
        torch.randn(32, 48),
        torch.randn(17, 35),
        torch.randn(35, 17).bfloat16().t(),
        torch.randn(1, 1),
        torch.randn(0, 16),
        torch.randn(3, 0),
    ):
        assert_fake_agrees(op, x, axis)


@AXES
def test_one_trace_serves_all_sizes(axis: int) -> None:
    def transformed(x: Tensor) -> Tensor:
        return op(x, axis)

    assert_one_trace_serves_all_sizes(transformed, (torch.randn(40, 70),), (torch.randn(35, 96),))


def test_opcheck() -> None:
    opcheck(op, (torch.randn(20, 40), 0))
    opcheck(op, (torch.randn(40, 20).bfloat16().t(), 1))
