"""spectral::round, amax and carry: what `quantize` makes of an operand, as values and where the operand lies."""

import pytest
import torch

from spectral_compile import formats
from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.round import amax, carry, round
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes, equal_bits
from tests.ops.operands import QUANTISERS, arguments, quantized

FP4 = [q for q in QUANTISERS if q[0] != "identity"]


@pytest.mark.parametrize(("format", "rule", "tile_rows"), FP4)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_are_those_of_the_codes(
    format: str, rule: str, tile_rows: int, axis: int, hadamard: bool, dtype: torch.dtype
) -> None:
    x, mean = torch.randn(37, 50) * 3, torch.randn(50)
    how = {"axis": axis, "mean": mean, "hadamard": hadamard}
    values, tensor_scale = round(*arguments(x, format, rule, tile_rows, **how), dtype)  # type: ignore[arg-type]
    codes, scales, expected = quantized(x, format, rule, tile_rows, **how)
    extent = -(-x.shape[axis] // 16) * 16 if hadamard else x.shape[axis]
    stored = carried(codes, scales, format, extent)
    assert equal_bits(values, (stored if axis == 1 else stored.t()).to(dtype).contiguous())
    assert equal_bits(tensor_scale, expected)
    rows = stored.shape[0]
    assert equal_bits(carry(codes, scales, format, rows, extent, dtype), stored.to(dtype).contiguous())


def test_a_known_amax_changes_nothing() -> None:
    x, mean, rows = torch.randn(40, 32), torch.randn(32), (torch.arange(40) % 3 > 0).float()
    known = amax(x, mean, rows)
    assert known.item() == (x - rows[:, None] * mean).abs().max().item()
    for axis in (0, 1):
        call = arguments(x, axis=axis, mean=mean, rows=rows)
        assert equal_bits(round(*call, torch.float32, known)[0], round(*call, torch.float32)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_amax_of_what_is_not_finite_is_nan(bad: float) -> None:
    x = torch.randn(3, 20)
    x[2, 7] = bad
    assert amax(x, None, None).isnan()
    assert amax(torch.zeros(0, 5), None, None).item() == 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("hadamard", [False, True])
def test_fakes_agree(axis: int, hadamard: bool) -> None:
    x = torch.randn(37, 50)
    call = arguments(x, "mxfp4", axis=axis, hadamard=hadamard)
    assert_fake_agrees(torch.ops.spectral.round, *call, torch.bfloat16)
    assert_fake_agrees(torch.ops.spectral.amax, x, None, None)
    codes, scales, _ = formats.quantize(x, "mxfp4")
    assert_fake_agrees(torch.ops.spectral.carry, codes, scales, "mxfp4", 37, 50, torch.float32)


def test_one_trace_serves_all_sizes() -> None:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.spectral.round(*arguments(x, axis=0, hadamard=True), torch.float32)[0]

    assert_one_trace_serves_all_sizes(rounded, (torch.randn(40, 24),), (torch.randn(33, 7),))


def test_results_are_contiguous_copies_whatever_goes_in() -> None:
    x = torch.randn(32, 48)
    assert round(*arguments(x, axis=0), torch.float32)[0].stride() == (48, 1)  # type: ignore[arg-type]
    codes, scales, _ = formats.quantize(torch.randn(8, 20))
    assert carry(codes, scales, "nvfp4", 8, 20, torch.float32).stride() == (20, 1)
    assert carry(x, x, "identity", 32, 48, torch.float32).data_ptr() != x.data_ptr()
