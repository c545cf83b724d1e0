"""spectral::token_mean and token_mean_nonzero: means, and the guards around them."""

import pytest
import torch
from torch.library import opcheck

from spectral_compile.ops.token_mean import (
    token_mean,
    token_mean_amax,
    token_mean_nonzero,
    token_mean_nonzero_amax,
)
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes

mean_op = torch.ops.spectral.token_mean.default
nonzero_op = torch.ops.spectral.token_mean_nonzero.default
OPS = [
    mean_op,
    nonzero_op,
    torch.ops.spectral.token_mean_amax.default,
    torch.ops.spectral.token_mean_nonzero_amax.default,
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_is_summed_in_fp32(dtype: torch.dtype) -> None:
    x = (torch.randn(3000, 8) + 3).to(dtype)
    got = token_mean(x, 1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), x.double().mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "taken"), [(0, False), (1, False), (31, False), (32, True), (33, True)])
def test_below_min_rows_the_mean_is_zero(rows: int, taken: bool) -> None:
    x = torch.ones(rows, 4)
    assert token_mean(x, 32).tolist() == [float(taken)] * 4
    assert token_mean_nonzero(x, 32)[0].tolist() == [float(taken)] * 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_neither_count_nor_are_marked(dtype: torch.dtype) -> None:
    x = torch.randn(40, 8).to(dtype)
    x[::4] = 0
    x[1] = -0.0  # also all zero
    x[2, 1:] = 0  # one element is enough
    counted = [r for r in range(40) if r % 4 and r != 1]
    mean, rows, total, common = token_mean_nonzero(x, 1)
    assert common.tolist() == [0] * 8
    assert (mean.dtype, rows.dtype, total.dtype) == (torch.float32,) * 3
    assert rows.nonzero().flatten().tolist() == counted
    assert rows.unique().tolist() == [0, 1]
    torch.testing.assert_close(mean.double(), x[counted].double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.double(), x.double().sum(0), rtol=1e-5, atol=1e-5)


def test_min_rows_counts_rows_that_are_not_zero_and_the_sum_is_always_the_sum() -> None:
    x = torch.zeros(100, 4)
    x[:7] = 2
    mean, rows, total, _ = token_mean_nonzero(x, 8)
    assert mean.tolist() == [0] * 4
    assert rows.sum() == 7
    assert total.tolist() == [14] * 4
    assert token_mean_nonzero(x, 7)[0].tolist() == [2] * 4


def test_all_rows_zero_gives_zeros_and_not_nan() -> None:
    assert all((t == 0).all() for t in token_mean_nonzero(torch.zeros(50, 4), 1))


def test_a_row_of_nan_is_not_a_row_of_zeros() -> None:
    x = torch.zeros(3, 2)
    x[1, 0] = torch.nan
    mean, rows, total, _ = token_mean_nonzero(x, 1)
    assert rows.tolist() == [0, 1, 0]
    assert mean.isnan().tolist() == [True, False]
    assert total.isnan().tolist() == [True, False]


def test_the_smallest_subnormal_is_not_zero() -> None:
    x = torch.zeros(2, 2)
    x[0, 1] = 2.0**-149
    assert token_mean_nonzero(x, 1)[1].tolist() == [1, 0]


def test_the_common_mean_is_the_mean_where_every_row_counts() -> None:
    x = torch.randn(40, 6)
    mean, _, _, common = token_mean_nonzero(x, 1)
    assert torch.equal(mean, common)
    assert mean.any()


@pytest.mark.parametrize("zero_row", [False, True])
def test_amax_is_that_of_what_stays(zero_row: bool) -> None:
    x = torch.randn(40, 6) + 3
    x[3] *= not zero_row
    assert token_mean_amax(x, 1)[1] == (x - x.mean(0)).abs().max()
    mean, rows, _, common, largest, largest_common = token_mean_nonzero_amax(x, 1)
    assert largest == (x - rows[:, None] * mean).abs().max()
    assert largest_common == (x.abs() if zero_row else (x - common).abs()).max()


@pytest.mark.parametrize("op", OPS, ids=str)
class TestAll:
    def test_the_fake_kernel_agrees(self, op: torch._ops.OpOverload) -> None:
        for x in (
            torch.randn(40, 6),
            torch.randn(6, 40).bfloat16().t(),
            torch.randn(1, 1),
            torch.randn(0, 3),
        ):
            assert_fake_agrees(op, x, 32)

    def test_one_trace_serves_both_sides_of_min_rows(self, op: torch._ops.OpOverload) -> None:
        def mean(x: torch.Tensor) -> torch.Tensor:
            return op(x, 32)

        assert_one_trace_serves_all_sizes(mean, (torch.randn(40, 6),), (torch.randn(20, 5),))

    def test_opcheck(self, op: torch._ops.OpOverload) -> None:
        opcheck(op, (torch.randn(40, 6), 32))
        opcheck(op, (torch.randn(6, 40).bfloat16().t(), 41))
