"""spectral::quantize: what it hands to the format, and what its fake kernel promises."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile.formats.nvfp4 import quantize_nvfp4
from spectral_compile.ops.center import center
from spectral_compile.ops.quantize import quantize
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes, equal_bits

op = torch.ops.spectral.quantize.default
SEED = torch.tensor(5)


def all_equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(equal_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 16])
@pytest.mark.parametrize("seed", [None, SEED], ids=["nearest", "stochastic"])
def test_blocks_run_along_the_axis_and_are_stored_along_rows(axis: int, tile_rows: int, seed: Tensor | None) -> None:
    x = torch.randn(33, 50)
    expected = quantize_nvfp4(x if axis == 1 else x.t(), tile_rows=tile_rows, seed=seed, stream=3)
    assert all_equal(quantize(x, None, None, seed, "nvfp4", axis, tile_rows, 3), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("format", ["nvfp4", "identity"])
def test_a_mean_is_taken_out_in_fp32_before_anything_is_rounded(axis: int, with_rows: bool, format: str) -> None:
    x, mean = torch.randn(20, 40).bfloat16() + 9, torch.randn(40) + 9
    rows = (torch.arange(20) % 3 > 0).float() if with_rows else None
    centred = center(x, mean, rows)
    assert centred.dtype == torch.float32
    got = quantize(x, mean, rows, None, format, axis, 1, 0)
    assert all_equal(got, quantize(centred, None, None, None, format, axis, 1, 0))
    assert not equal_bits(got[0], quantize(x, None, None, None, format, axis, 1, 0)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("axis", [0, 1])
def test_identity_stores_the_values_themselves(dtype: torch.dtype, axis: int) -> None:
    x = torch.randn(6, 10).to(dtype)
    codes, scales, amax = quantize(x, None, None, SEED, "identity", axis, 1, 0)
    assert equal_bits(codes, x if axis == 1 else x.t())
    assert codes.data_ptr() != x.data_ptr()
    assert scales.numel() == 0
    assert amax.item() == 1


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_a_poisoned_mean_poisons_the_operand(mean: float) -> None:
    _, _, amax = quantize(torch.randn(4, 16), torch.full((16,), mean), None, None, "nvfp4", 1, 1, 0)
    assert amax.isnan()


@pytest.mark.parametrize("shape", [(32, 48), (17, 35), (1, 16), (40, 1), (0, 16), (3, 0)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("format", ["nvfp4", "identity"])
def test_the_fake_kernel_agrees(shape: tuple[int, int], axis: int, format: str) -> None:
    """For any layout, as Inductor hands them over: rows, columns, or every other element."""
    strided = torch.randn(2 * shape[0], 2 * shape[1])[::2, ::2]
    for x in (torch.randn(shape), torch.randn(shape[::-1]).t(), strided.bfloat16(), strided):
        for tile_rows in (1, 16):
            assert_fake_agrees(op, x, None, None, None, format, axis, tile_rows, 0)
        mean, rows = torch.randn(shape[1]), torch.ones(shape[0])
        assert_fake_agrees(op, x, mean, rows, SEED, format, axis, 1, 0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 16])
def test_one_trace_serves_all_sizes(axis: int, tile_rows: int) -> None:
    def codes_and_scales(x: Tensor) -> tuple[Tensor, ...]:
        return op(x, None, None, None, "nvfp4", axis, tile_rows, 0)[:2]

    assert_one_trace_serves_all_sizes(codes_and_scales, (torch.randn(40, 70),), (torch.randn(35, 96),))


@pytest.mark.parametrize("format", ["nvfp4", "identity"])
def test_opcheck(format: str) -> None:
    x, mean, rows = torch.randn(20, 40), torch.randn(40), torch.ones(20)
    opcheck(op, (x, None, None, None, format, 0, 16, 0))
    opcheck(op, (x, mean, rows, SEED, format, 1, 1, 0))
