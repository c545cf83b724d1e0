"""spectral::center: an operand less its mean."""

import pytest
import torch
from torch.library import opcheck

from spectral_compile.ops.center import center
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes

op = torch.ops.spectral.center.default


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_row_loses_the_mean_in_one_fp32_subtraction(dtype: torch.dtype) -> None:
    x, mean = torch.randn(6, 10).to(dtype), torch.randn(10)
    got = center(x, mean, None)
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.from_numpy(x.float().numpy() - mean.numpy()))


def test_only_marked_rows_lose_it_and_the_others_keep_every_bit() -> None:
    x, mean, rows = torch.randn(5, 8), torch.randn(8), torch.tensor([1.0, 0, 0, 1, 0])
    got = center(x, mean, rows)
    marked = rows.bool()
    assert torch.equal(got[marked], x[marked] - mean)
    assert torch.equal(got[~marked], x[~marked])


def test_rows_of_zeros_stay_zeros() -> None:
    assert (center(torch.zeros(3, 4), torch.randn(4), torch.zeros(3)) == 0).all()


def test_the_fake_kernel_agrees() -> None:
    for x in (torch.randn(6, 4), torch.randn(4, 6).bfloat16().t(), torch.randn(1, 4), torch.randn(0, 4)):
        assert_fake_agrees(op, x, torch.randn(4), None)
        assert_fake_agrees(op, x, torch.randn(4), torch.ones(x.shape[0]))


def test_one_trace_serves_all_sizes() -> None:
    def centred(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        return op(x, mean, None)

    others = (torch.randn(9, 3), torch.randn(3))
    assert_one_trace_serves_all_sizes(centred, (torch.randn(6, 4), torch.randn(4)), others)


def test_opcheck() -> None:
    opcheck(op, (torch.randn(6, 4), torch.randn(4), None))
    opcheck(op, (torch.randn(6, 4).bfloat16(), torch.randn(4), torch.ones(6)))
