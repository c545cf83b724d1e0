"""The kernels of spectral::quantize, quantize_pair and amax, interpreted, against the references: no bit may differ."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.ops.quantize import quantize as reference
from spectral_compile.ops.quantize_pair import quantize_pair as reference_pair
from spectral_compile.ops.round import amax as reference_amax
from tests.lowering.matrices import RULES, along, laid_out, same_bits, values
from tests.lowering.triton.cases import Side, matrices, sides, square
from tests.lowering.triton.interpreted import Run, interpreted  # noqa: F401

# Around the lengths of a block (16, 32) and of a tile (64 rows; its 128 columns are exceeded below).
SIZES = (1, 2, 15, 16, 17, 33, 63, 64, 65)
QUICK = settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def assert_as_reference(run: Run, x: Tensor, side: Side, axis: int) -> None:
    arguments = side.arguments(x, axis)
    for name, a, b in zip(
        ("codes", "scales", "scale"), run("quantize", *arguments), reference(*arguments), strict=True
    ):
        assert same_bits(a, b), name


def assert_pair_as_reference(run: Run, x: Tensor, row: Side, col: Side) -> None:
    arguments = (x, *row.in_pair(), *col.in_pair())
    for i, (a, b) in enumerate(zip(run("quantize_pair", *arguments), reference_pair(*arguments), strict=True)):
        assert same_bits(a, b), i


@QUICK
@given(st.data())
def test_every_bit_of_a_pair_is_the_references(interpreted: Run, data: st.DataObject) -> None:  # noqa: F811
    x = data.draw(matrices(SIZES))
    row = data.draw(sides(x))
    col = data.draw(st.just(row) | sides(x))
    if row.scale == "four_six" and row.seed is not None:
        row = replace(row, seed=None)
    assert_pair_as_reference(interpreted, x, row, col)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("format", "scale"), RULES)
def test_every_rule(interpreted: Run, format: str, scale: str, axis: int) -> None:  # noqa: F811
    """With and without square blocks, a transform and random bits."""
    x = values(45, 70, "outliers", torch.bfloat16, torch.default_generator)
    mean, rows = torch.randn(70), (torch.arange(45) % 4 > 0).float()
    side = Side(mean, rows, format=format, scale=scale, stream=7)
    seed = None if scale == "four_six" else torch.tensor([2**40 + 3])
    for tile_rows, hadamard, random in ((1, True, seed), (square(format), False, seed if axis else None)):
        assert_as_reference(interpreted, x, replace(side, tile_rows=tile_rows, hadamard=hadamard, seed=random), axis)


@pytest.mark.parametrize("seed", [None, torch.tensor([5])])
@pytest.mark.parametrize("format", FORMATS)
def test_bf16_magnitudes_from_subnormal_to_largest_are_rounded_as_the_reference_does(
    interpreted: Run,  # noqa: F811
    format: str,
    seed: Tensor | None,
) -> None:
    finite = torch.arange(0, 0x7F80, 4, dtype=torch.int16) + torch.arange(0x7F80 // 4, dtype=torch.int16) % 4
    both = finite.view(torch.bfloat16) * torch.tensor([1, -1]).bfloat16().repeat(0x7F80 // 8)
    # Neighbours in magnitude share a block; what the largest of the tensor is decides where NVFP4 loses bits.
    for exponent in (-126, 0, 127):
        x = torch.where(both.abs() <= 2.0**exponent, both, 0).view(-1, 96)
        assert_as_reference(interpreted, x, Side(seed=seed, format=format, stream=3), 1)


@pytest.mark.parametrize("scale", FORMATS["mxfp4"].scales)
def test_block_maxima_on_either_side_of_every_boundary(interpreted: Run, scale: str) -> None:  # noqa: F811
    """MXFP4's rules look at the exponent and the first mantissa bits of a block's largest magnitude."""
    exponents, eighths = torch.tensor([0, 1, 2, 3, 4, 127, 252, 253, 254]), torch.arange(8)
    bits = (exponents[:, None, None] << 23) + (eighths[:, None] << 20) + torch.tensor([-1, 0, 1])
    largest = bits.flatten().clamp(min=0).to(torch.int32).view(torch.float32)
    x = largest[:, None] * torch.linspace(-1, 1, 32)
    for axis in (0, 1):
        assert_as_reference(interpreted, along(axis, x), Side(format="mxfp4", scale=scale), axis)


@pytest.mark.parametrize("square_blocks", [False, True])
def test_errors_are_summed_in_the_references_order(interpreted: Run, square_blocks: bool) -> None:  # noqa: F811
    """With scales 1 and 1.5, 0.625 + d and 0.625 - d have errors 0.125 +- d and 0.125 -+ d: over a block that holds
    both the two sums have equal terms in another order, and only their rounding tells them apart.
    """
    blocks, size = 60, 256 if square_blocks else 16
    d = 0.1 * torch.rand(blocks, size // 2 - 1)
    d = (d * 2**21).round() / 2**21  # 0.625 +- d, and so the errors, are exact
    x = torch.cat([torch.full((blocks, 1), 6.0), torch.zeros(blocks, 1), 0.625 + d, 0.625 - d], 1)
    x = x.gather(1, torch.rand(blocks, size).argsort(1))
    x[0, 0] = 2688  # encoding scale 1
    x = x.view(6, 10, size // 16, 16).transpose(1, 2).reshape(-1, 160)
    side = Side(scale="four_six", tile_rows=16 if square_blocks else 1)
    for axis in (0, 1):
        assert_as_reference(interpreted, along(axis, x), side, axis)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity_are_never_silent(interpreted: Run, format: str, poison: float) -> None:  # noqa: F811
    x = torch.randn(70, 70)
    x[40, 40] = poison
    row, col = Side(format=format, tile_rows=square(format)), Side(format=format, seed=torch.tensor([1]))
    assert_pair_as_reference(interpreted, x, row, replace(col, hadamard=True))
    _, scales, tensor_scale, *_ = interpreted("quantize_pair", x.bfloat16(), *row.in_pair(), *col.in_pair())
    assert tensor_scale.isnan() or scales.isnan().sum() == 1


@pytest.mark.parametrize("format", FORMATS)
def test_a_mean_that_is_not_finite_or_overflows_poisons(interpreted: Run, format: str) -> None:  # noqa: F811
    x = torch.full((20, 40), 3e38)
    for bad in (float("nan"), float("inf"), -3e38):
        mean = torch.zeros(40)
        mean[39] = bad
        assert_pair_as_reference(interpreted, x, Side(mean, format=format), Side(mean, format=format))


@pytest.mark.parametrize("format", FORMATS)
def test_a_transform_may_overflow_meet_nan_and_vanish(interpreted: Run, format: str) -> None:  # noqa: F811
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    side = Side(format=format, hadamard=True)
    for special in (torch.full((16,), 3e38), nans, torch.full((16,), 1e-45)):
        x = torch.randn(40, 70) * 1e-40
        x[3, : len(special)] = special
        x[20:36, 50] = special.repeat(16)[:16]
        for dtype in (torch.float32, torch.bfloat16):
            assert_pair_as_reference(interpreted, x.to(dtype), side, side)


def test_a_poisoned_sample_is_told_from_a_sample_that_missed_the_nan(interpreted: Run) -> None:  # noqa: F811
    x = torch.randn(20, 40)
    for amax in (1.5, 0.0, 1e-38, float("nan")):
        side = Side(amax=torch.tensor(amax))
        assert_pair_as_reference(interpreted, x, side, side)
    x[3, 20] = float("nan")
    _, scales, _ = interpreted("quantize", *Side(amax=torch.tensor(1.5)).arguments(x, 1))
    assert scales.isnan().nonzero().tolist() == [[3, 1]]


def test_the_product_with_the_mean_is_rounded_before_it_is_subtracted(interpreted: Run) -> None:  # noqa: F811
    rows, mean = torch.rand(40), torch.randn(70)
    x = rows[:, None] * mean  # what a fused multiply-add leaves of it is not zero
    side = Side(mean, rows)
    assert not any(interpreted("quantize_pair", x, *side.in_pair(), *side.in_pair())[i].any() for i in (0, 3))


@pytest.mark.parametrize("shape", [(0, 40), (40, 0), (0, 0)])
def test_nothing(interpreted: Run, shape: tuple[int, int]) -> None:  # noqa: F811
    x = torch.empty(shape)
    assert_pair_as_reference(interpreted, x, Side(), Side(format="mxfp4"))
    assert same_bits(*interpreted("amax", x, None, None), reference_amax(x, None, None))


def test_the_padding_of_a_wide_row_is_not_of_the_next(interpreted: Run) -> None:  # noqa: F811
    """Rows of a matrix in a larger one: what lies behind their ends is large, and none of ours."""
    whole = torch.full((70, 90), 1e30)
    whole[1:66, 5:42] = torch.randn(65, 37)
    x = whole[1:66, 5:42]
    assert_pair_as_reference(interpreted, x, Side(hadamard=True), Side(format="mxfp4"))
    assert_pair_as_reference(interpreted, x.t(), Side(tile_rows=16), Side(hadamard=True))


@QUICK
@given(st.data())
def test_amax(interpreted: Run, data: st.DataObject) -> None:  # noqa: F811
    x = data.draw(matrices(SIZES))
    side = data.draw(sides(x))
    for mean, rows in {(None, None), (side.mean, None), (side.mean, side.rows)}:
        assert same_bits(*interpreted("amax", x, mean, rows), reference_amax(x, mean, rows))


@pytest.mark.parametrize("hadamard", [False, True])
def test_identity_keeps_the_values(interpreted: Run, hadamard: bool) -> None:  # noqa: F811
    x = torch.randn(5, 7).bfloat16()
    arguments = (x, None, None, None, "identity", "", 0, 1, hadamard, 0, None)
    for a, b in zip(interpreted("quantize", *arguments), reference(*arguments), strict=True):
        assert same_bits(a, b)
    identity = (None, None, None, "identity", "", 1, hadamard, 0, None)
    arguments = (x, *Side().in_pair(), *identity)
    for a, b in zip(interpreted("quantize_pair", *arguments), reference_pair(*arguments), strict=True):
        assert same_bits(a, b)


def test_a_quantiser_that_does_not_exist_is_refused(interpreted: Run) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="stochastic"):
        interpreted("quantize", *Side(seed=torch.tensor([1]), scale="four_six").arguments(torch.ones(16, 16), 1))


def test_layouts_are_read_as_they_lie(interpreted: Run) -> None:  # noqa: F811
    x = torch.randn(65, 129).bfloat16()
    side = Side(torch.randn(129), torch.rand(65), tile_rows=16)
    col = Side(torch.randn(129), None, torch.tensor([3]), "mxfp4", hadamard=True)
    for layout in ("transposed", "every other"):
        assert_pair_as_reference(interpreted, laid_out(x, layout), side, col)
    assert_as_reference(interpreted, laid_out(x, "padded columns"), replace(col, format="nvfp4"), 0)
    assert_as_reference(interpreted, laid_out(x, "transposed"), replace(side, hadamard=True), 1)
