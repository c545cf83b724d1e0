"""The kernels of spectral::token_mean and its kin, interpreted: means against sums in fp64, all else to the bit."""

import pytest
import torch
from torch import Tensor

from spectral_compile.ops.center import center as reference_center
from spectral_compile.ops.dequantize import dequantize as reference_dequantize
from spectral_compile.ops.quantize import quantize
from spectral_compile.ops.round import amax, carry
from spectral_compile.ops.token_mean import token_mean_nonzero
from tests.lowering.matrices import laid_out, same_bits, same_but_nans_bits, values
from tests.lowering.triton.cases import Side, square
from tests.lowering.triton.interpreted import Run, interpreted  # noqa: F401


def bound(x: Tensor, count: float) -> Tensor:
    """What fp32 sums over chunks of 256 rows, and one division, may err by: [features]."""
    return 2.0**-24 * (256 + 4) * x.double().abs().sum(0) / count + 1e-44


def assert_means(run: Run, x: Tensor, min_rows: int) -> None:
    """Of all four operators: the sums to rounding, which rows count and the largest magnitudes to the bit."""
    tokens = x.shape[0]
    exact = x.double().sum(0)
    mean, largest = run("token_mean_amax", x, min_rows)
    assert_close(mean, exact / tokens if tokens >= min_rows else torch.zeros_like(exact), bound(x, tokens))
    assert same_bits(mean, *run("token_mean", x, min_rows))
    assert same_bits(largest, amax(x, mean, None))

    *means, largest, largest_common = run("token_mean_nonzero_amax", x, min_rows)
    assert all(same_bits(a, b) for a, b in zip(means, run("token_mean_nonzero", x, min_rows), strict=True))
    mean, rows, total, common = means
    assert same_bits(rows, token_mean_nonzero(x, min_rows)[1])
    count = int(rows.sum())
    assert_close(total, exact, bound(x, 1))
    few = count < min_rows
    assert_close(mean, torch.zeros_like(exact) if few else exact / max(count, 1), bound(x, max(count, 1)))
    assert same_bits(common, mean if count == tokens else torch.zeros_like(mean))
    assert same_bits(largest, amax(x, mean, rows))
    assert same_bits(largest_common, amax(x, common, None))


def assert_close(mean: Tensor, exact: Tensor, bound: Tensor) -> None:
    """But where the exact sum is not finite, or its fp32 rounding may overflow on the way."""
    certain = bound < 1e30
    assert bool(((mean - exact).abs() <= bound)[certain].all())
    assert not bool(mean[exact.isnan()].isfinite().any())


@pytest.mark.parametrize(
    ("shape", "empty", "dtype", "layout"),
    [
        ((1, 1), 0.0, torch.float32, "plain"),
        ((65, 130), 0.4, torch.bfloat16, "transposed"),
        ((300, 17), 0.0, torch.float16, "every other"),
        ((40, 33), 1.0, torch.bfloat16, "plain"),
    ],
)
def test_means(
    interpreted: Run,  # noqa: F811
    shape: tuple[int, int],
    empty: float,
    dtype: torch.dtype,
    layout: str,
) -> None:
    x = torch.randn(shape) + 3
    x[torch.rand(shape[0]) < empty] *= -0.0
    x = laid_out(x.to(dtype), layout)
    assert_means(interpreted, x, 2)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_elements_that_are_not_finite_or_whose_sums_overflow(interpreted: Run, special: float) -> None:  # noqa: F811
    x = torch.randn(30, 20)
    x[17], x[5:15, 3] = 0, special
    assert_means(interpreted, x, 2)
    assert_means(interpreted, x.bfloat16(), 200)


@pytest.mark.parametrize("special", [float("nan"), -0.0, 1e-45])
def test_a_row_counts_for_a_single_smallest_or_nan_element(interpreted: Run, special: float) -> None:  # noqa: F811
    x = torch.zeros(30, 3)
    x[3:6, 1] = special
    assert_means(interpreted, x, 1)


def test_one_sided_columns_with_and_without_zeros(interpreted: Run) -> None:  # noqa: F811
    """Zeros count in rows that count, though the extremes are looked for among others; those of empty rows do not."""
    x = torch.rand(40, 30) + 5
    x[::2, 3] = 0
    x[:, 7] *= -1
    x[10:14] = 0
    assert_means(interpreted, x, 1)


def test_no_tokens(interpreted: Run) -> None:  # noqa: F811
    mean, rows, total, _ = interpreted("token_mean_nonzero", torch.empty(0, 4), 1)
    assert (mean.tolist(), rows.shape, total.tolist()) == ([0.0] * 4, (0,), [0.0] * 4)


@pytest.mark.parametrize("square_blocks", [False, True])
@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
def test_codes_back_to_values(interpreted: Run, format: str, square_blocks: bool) -> None:  # noqa: F811
    x = values(45, 300, "outliers", torch.float32, torch.default_generator)
    x[3, 5] = float("nan") if format == "mxfp4" else 0
    side = Side(format=format, tile_rows=square(format) if square_blocks else 1)
    codes, scales, tensor_scale = quantize(*side.arguments(x, 1))
    arguments = (codes, scales, tensor_scale, format, 45, 300)
    assert same_but_nans_bits(*interpreted("dequantize", *arguments), reference_dequantize(*arguments))
    for dtype in (torch.bfloat16, torch.float32):
        arguments = (codes, scales, format, 45, 300, dtype)
        assert same_but_nans_bits(*interpreted("carry", *arguments), carry(*arguments))


def test_center(interpreted: Run) -> None:  # noqa: F811
    x, mean, rows = torch.randn(45, 150).bfloat16(), torch.randn(150), torch.rand(45)
    assert same_bits(*interpreted("center", x, mean, None), reference_center(x, mean, None))
    x = laid_out(x, "transposed")
    assert same_bits(*interpreted("center", x, mean, rows), reference_center(x, mean, rows))
