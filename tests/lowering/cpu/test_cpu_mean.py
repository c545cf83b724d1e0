"""spectral::token_mean and spectral::token_mean_nonzero on the CPU against sums in fp64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.ops.token_mean import token_mean_nonzero as reference_nonzero
from tests.fake_kernels import equal_bits

pytestmark = pytest.mark.usefixtures("library")

SIZES = (1, 2, 15, 16, 17, 63, 64, 65, 300)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def bound(x: Tensor, count: float) -> Tensor:
    """What fp32 sums over chunks of 64 rows, and one division, may err by: [features]."""
    return 2.0**-24 * (64 + 4) * x.double().abs().sum(0) / count + 1e-44


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """A matrix with rows of zeros (some negative), in one of several layouts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES)), generator=generator) + 3
    empty = torch.rand(x.shape[0], generator=generator) < draw(st.sampled_from([0.0, 0.4, 1.0]))
    x[empty] *= -0.0
    x = x.to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["plain", "transposed", "every other"]))
    if layout == "transposed":
        return x.t().contiguous().t()
    return x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2] if layout == "every other" else x


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(matrices(), st.integers(1, 20))
def test_token_mean(x: Tensor, min_rows: int) -> None:
    mean = torch.ops.spectral.token_mean(x, min_rows)
    assert mean.dtype == torch.float32
    if x.shape[0] < min_rows:
        assert torch.equal(mean, torch.zeros(x.shape[1]))
    else:
        assert bool(((mean - x.double().mean(0)).abs() <= bound(x, x.shape[0])).all())


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(matrices(), st.integers(1, 20))
def test_token_mean_nonzero(x: Tensor, min_rows: int) -> None:
    mean, rows, total, common = torch.ops.spectral.token_mean_nonzero(x, min_rows)
    assert torch.equal(common, mean if rows.all() else torch.zeros_like(mean))
    assert torch.equal(rows, reference_nonzero(x, min_rows)[1])
    count = max(rows.sum().item(), 1)
    assert bool(((total - x.double().sum(0)).abs() <= bound(x, 1)).all())
    if rows.sum() < min_rows:
        assert torch.equal(mean, torch.zeros(x.shape[1]))
    else:
        assert bool(((mean - x.double().sum(0) / count).abs() <= bound(x, count)).all())


@settings(suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(matrices(), st.integers(1, 20))
def test_amax_from_the_same_read_is_that_of_a_search(x: Tensor, min_rows: int) -> None:
    assert_amax_is_found(x, min_rows)


def assert_amax_is_found(x: Tensor, min_rows: int) -> None:
    """No bit differs, in means or amax, from what the operators without `_amax`, and amax, say."""
    mean, largest = torch.ops.spectral.token_mean_amax(x, min_rows)
    assert equal_bits(mean, torch.ops.spectral.token_mean(x, min_rows))
    assert equal_bits(largest, torch.ops.spectral.amax(x, mean, None))
    *results, largest, largest_common = torch.ops.spectral.token_mean_nonzero_amax(x, min_rows)
    expected = torch.ops.spectral.token_mean_nonzero(x, min_rows)
    assert all(equal_bits(a, b) for a, b in zip(results, expected, strict=True))
    mean, rows, _, common = expected
    assert equal_bits(largest, torch.ops.spectral.amax(x, mean, rows))
    assert equal_bits(largest_common, torch.ops.spectral.amax(x, common, None))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 3e38, -0.0, 1e-45])
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("min_rows", [1, 200])
def test_amax_where_sums_overflow_or_elements_are_not_finite(special: float, count: int, min_rows: int) -> None:
    x = torch.randn(80, 140)
    x[70], x[5 : 5 + count, 133] = 0, special
    assert_amax_is_found(x, min_rows)
    assert_amax_is_found(torch.full((80, 3), special), min_rows)
    x[7, 133] = -special  # another infinity makes NaN of the sum
    assert_amax_is_found(x.bfloat16(), min_rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_counts_for_a_single_smallest_or_nan_element(dtype: torch.dtype) -> None:
    x = torch.zeros(5, 40, dtype=dtype)
    x[1, 39] = torch.finfo(dtype).smallest_normal / 4  # subnormal
    x[2, 0] = float("nan")
    x[3] = -0.0
    assert torch.ops.spectral.token_mean_nonzero(x, 1)[1].tolist() == [0, 1, 1, 0, 0]


def test_long_sums_do_not_drift() -> None:
    x = torch.full((100_000, 3), 0.1)  # a plain fp32 sum is off by 1e-4 here
    mean = torch.ops.spectral.token_mean(x, 1)
    assert bool(((mean - x.double().mean(0)).abs() < 1e-6 * 0.1).all())


def test_nan_stays_in_its_column() -> None:
    x = torch.ones(70, 33)
    x[69, 5] = float("nan")
    assert torch.ops.spectral.token_mean(x, 1).isnan().nonzero().flatten().tolist() == [5]


def test_no_tokens() -> None:
    mean, rows, total, _ = torch.ops.spectral.token_mean_nonzero(torch.empty(0, 4), 1)
    assert (mean.tolist(), rows.shape, total.tolist()) == ([0.0] * 4, (0,), [0.0] * 4)
    assert torch.ops.spectral.token_mean(torch.empty(0, 4), 1).tolist() == [0.0] * 4


def test_the_number_of_threads_changes_nothing() -> None:
    x = torch.randn(1000, 300).bfloat16()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(torch.ops.spectral.token_mean_nonzero_amax(x, 2))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
