"""What is measured of an operand, against the same computed plainly from all its elements."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_compile import formats
from spectral_compile.formats.hadamard import hadamard as transform
from spectral_compile.measuring import statistics
from spectral_compile.measuring.statistics import SAMPLE, Quantiser, cosine, of_operand, sampled_rows

CASES = [
    ("nvfp4", "amax", 1, 1, False),
    ("nvfp4", "headroom", 0, 1, False),
    ("nvfp4", "four_six", 1, 16, False),
    ("nvfp4", "amax", 0, 1, True),
    ("mxfp4", "floor", 1, 1, False),
    ("mxfp4", "rceil", 0, 32, False),
]


def measured(
    x: Tensor, case: tuple[str, str, int, int, bool], mean: Tensor | None = None, rows: Tensor | None = None
) -> dict[str, Any]:
    format, scale, axis, tile_rows, hadamard = case
    how = (mean, rows, None, format, scale, axis, tile_rows, hadamard, 0)
    tensor_scale = torch.ops.spectral.quantize(x, *how)[2]
    return of_operand(x, *how[:2], Quantiser(*how[2:]), tensor_scale, token_axis=0)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("shape", [(64, 96), (45, 19)])
def test_as_computed_plainly(case: tuple[str, str, int, int, bool], shape: tuple[int, int]) -> None:
    format, scale, axis, tile_rows, hadamard = case
    x = torch.randn(shape) * torch.randn(shape).exp() + 0.5
    found = measured(x, case)

    exact = (transform(x, axis) if hadamard else x).double()
    q = formats.quantize(x, format, axis=axis, scale=scale, tile_rows=tile_rows, hadamard=hadamard)
    error = formats.dequantize(q, format, exact.shape[axis], axis).double() - exact
    assert found["snr_db"] == pytest.approx(10 * math.log10(exact.square().sum() / error.square().sum()), abs=1e-4)
    largest = formats.dequantize(q._replace(codes=torch.full_like(q.codes, 0x77)), format, exact.shape[axis], axis)
    assert found["clipped"] == pytest.approx((exact.abs() > largest * (1 + 2**-20)).double().mean().item(), rel=1e-6)
    assert (found["clipped"] == 0) == (scale in ("headroom", "rceil"))
    assert found["amax"] == (exact.bfloat16() if hadamard else x).abs().max()
    mean = x.double().mean(0)
    deviation = (x - mean).square().sum(1).mean().sqrt()
    assert found["mean_to_deviation"] == pytest.approx((mean.norm() / deviation).item(), rel=1e-5)
    assert "mean_to_deviation_after" not in found


def test_a_mean_that_is_taken_out_is_gone_afterwards_and_what_is_quantised_is_what_is_left() -> None:
    x = torch.randn(128, 64) + 10
    mean = x.mean(0)
    found, plain = measured(x, CASES[0], mean), measured(x, CASES[0])
    assert found["mean_to_deviation"] == plain["mean_to_deviation"] > 5
    assert found["mean_to_deviation_after"] < 1e-5
    assert found["amax"] == (x - mean).abs().max()
    assert found["snr_db"] == measured(x - mean, CASES[0])["snr_db"]

    rows = (torch.arange(128) % 4 > 0).float()  # a quarter of the tokens keeps it
    assert measured(x, CASES[0], mean, rows)["mean_to_deviation_after"] == pytest.approx(
        (mean.norm() / 4 / (x - rows[:, None] * mean - mean / 4).square().sum(1).mean().sqrt()).item(), rel=1e-4
    )


def test_of_a_large_operand_a_sample_tells_as_much_as_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4096, 64) * torch.randn(64).exp() + torch.randn(64)
    x[4095, 0] = 100.0  # is not looked at, and is what NVFP4 scales by
    whole = measured(x, CASES[0])
    monkeypatch.setattr(statistics, "SAMPLE", 2**14)
    rows = sampled_rows(x)
    assert rows.numel() * 64 == 2**14
    assert 4095 not in rows
    assert rows.diff().unique().tolist() == [16]
    assert sampled_rows(x, 32).view(-1, 32).diff().unique().tolist() == [1]  # blocks are whole
    assert (sampled_rows(x, 32).view(-1, 32)[:, 0] % 32 == 0).all()
    part = measured(x, CASES[0])
    assert part["amax"] == whole["amax"] == 100
    assert part["snr_db"] == pytest.approx(whole["snr_db"], abs=0.3)
    assert part["clipped"] == pytest.approx(whole["clipped"], rel=0.2)
    assert part["mean_to_deviation"] == pytest.approx(whole["mean_to_deviation"], rel=0.05)


@pytest.mark.parametrize("chunk", [1, 16, 32])
def test_no_more_is_looked_at_than_is_said_and_of_wide_operands_still_a_few_rows_everywhere(chunk: int) -> None:
    for rows, cols in ((2**16, 64), (4096, 4096), (2048, 50304)):
        sample = sampled_rows(torch.empty(rows, 0).expand(rows, 0).new_empty((rows, 1)).expand(rows, cols), chunk)
        assert sample.numel() * cols <= max(SAMPLE, 128 * cols)
        assert sample.numel() >= min(128, SAMPLE // cols)
        assert sample.unique().numel() == sample.numel()
        assert sample.max() < rows
        assert sample.min() < rows / 4
        assert sample.max() > rows * 3 / 4
    assert sampled_rows(torch.empty(1000, 1000), chunk) == slice(None)


def test_a_block_of_which_nothing_is_left_is_not_clipped() -> None:
    x = torch.randn(64, 64) * 1e-3
    x[0, 0] = 1e6
    assert measured(x, CASES[0])["clipped"] < 0.01


def test_tokens_may_lie_along_columns() -> None:
    x = torch.randn(48, 128) + torch.randn(48, 1) * 3  # features by tokens
    how = (None, None, None, "nvfp4", "amax", 0, 1, False, 0)
    tensor_scale = torch.ops.spectral.quantize(x, *how)[2]
    along_rows = measured(x.t(), CASES[0])["mean_to_deviation"]
    assert of_operand(x, *how[:2], Quantiser(*how[2:]), tensor_scale, token_axis=1)[
        "mean_to_deviation"
    ] == pytest.approx(along_rows, rel=1e-5)
    assert "mean_to_deviation" not in of_operand(x, *how[:2], Quantiser(*how[2:]), tensor_scale, token_axis=-1)


@pytest.mark.parametrize("x", [torch.zeros(32, 32), torch.full((32, 32), float("inf")), torch.zeros(3, 16)], ids=str)
def test_what_is_not_defined_is_none(x: Tensor) -> None:
    found = measured(x, CASES[0])
    assert found["snr_db"] is None
    assert found["mean_to_deviation"] is None
    assert found["amax"] == (0 if x.isfinite().all() else None)


def test_cosine() -> None:
    x = torch.randn(4, 5)
    assert cosine(x, 3 * x) == pytest.approx(1)
    assert cosine(x, -x.bfloat16()) == pytest.approx(-1, abs=1e-3)
    assert cosine(x, torch.zeros(4, 5)) is None
