"""spectral::quantize, round and amax on the CPU against their references: no bit may differ."""

import itertools
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.ops.quantize import quantize as reference
from spectral_compile.ops.round import amax as reference_amax
from spectral_compile.ops.round import round as reference_round
from tests.lowering.matrices import RULES, along, laid_out, same_bits, same_but_nans_bits, values

pytestmark = pytest.mark.usefixtures("library")

# Around the lengths of a block (16, 32), a vector of groups (256), a strip (64 columns, 128 rows).
SIZES = (0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 130, 255, 257, 300)


@dataclass(frozen=True)
class Case:
    x: Tensor
    mean: Tensor | None = None
    rows: Tensor | None = None
    seed: Tensor | None = None
    format: str = "nvfp4"
    scale: str | None = None
    axis: int = 1
    tile_rows: int = 1
    hadamard: bool = False
    stream: int = 0

    def arguments(self) -> tuple:
        scale = self.scale or FORMATS[self.format].scales[0]
        how = (self.format, scale, self.axis, self.tile_rows, self.hadamard, self.stream)
        return (self.x, self.mean, self.rows, self.seed, *how)

    def quantized(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.spectral.quantize(*self.arguments())


def assert_as_reference(case: Case) -> None:
    for name, a, b in zip(("codes", "scales", "amax"), case.quantized(), reference(*case.arguments()), strict=True):
        assert a.is_contiguous(), name
        assert same_bits(a, b), name
    assert_rounds_as_reference(case)


def assert_rounds_as_reference(case: Case) -> None:
    """Values in both types, with the largest magnitude looked for and given."""
    x, mean, rows, *_ = arguments = case.arguments()
    known = None if case.hadamard or case.format == "mxfp4" else torch.ops.spectral.amax(x, mean, rows)
    if known is not None:
        assert same_bits(known, reference_amax(x, mean, rows))
        with_known = torch.ops.spectral.quantize(*arguments, known)
        assert all(same_bits(a, b) for a, b in zip(with_known, case.quantized(), strict=True))
    for dtype in (torch.bfloat16, torch.float32):
        expected, expected_scale = reference_round(*arguments, dtype)
        for found in {None, known}:
            values, tensor_scale = torch.ops.spectral.round(*arguments, dtype, found)
            assert values.is_contiguous()
            assert same_but_nans_bits(values, expected)
            assert same_bits(tensor_scale, expected_scale)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, cols = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float16]))
    kind = draw(st.sampled_from(["gaussian", "outliers", "edges", "subnormal", "ties", "zeros"]))
    layouts = ["plain", "transposed", "padded rows", "padded columns", "every other", "offset", "expanded"]
    x = laid_out(values(rows, cols, kind, dtype, generator), draw(st.sampled_from(layouts)))
    mean = torch.randn(cols, generator=generator) * x.float().abs().max() if x.numel() else torch.zeros(cols)
    # Only 0 and 1 are promised; with others a fused multiply-add would show.
    weights = draw(st.sampled_from([None, (0.0, 1.0), (0.3, 1 / 3)]))
    row_values = None if weights is None else torch.tensor(weights)[torch.arange(rows) * 7 % 3 % 2]
    centred = draw(st.booleans())
    format, scale = draw(st.sampled_from(RULES))
    seed = None if scale == "four_six" else draw(st.none() | st.integers(-(2**63), 2**63 - 1))
    return Case(
        x=x,
        mean=mean if centred else None,
        rows=row_values if centred else None,
        seed=None if seed is None else torch.tensor([seed]),
        format=format,
        scale=scale,
        axis=draw(st.sampled_from([0, 1])),
        tile_rows=draw(st.sampled_from([1, FORMATS[format].block])),
        hadamard=draw(st.booleans()),
        stream=draw(st.sampled_from([0, 1, 12345, 2**32 - 1])),
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_bit_is_the_references(case: Case) -> None:
    assert_as_reference(case)


@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("format", "scale"), RULES)
def test_every_combination(format: str, scale: str, axis: int, square: bool, hadamard: bool) -> None:
    x = values(75, 150, "outliers", torch.bfloat16, torch.default_generator)
    mean, rows = torch.randn(150), (torch.arange(75) % 4 > 0).float()
    tile_rows = FORMATS[format].block if square else 1
    case = Case(x, format=format, scale=scale, axis=axis, tile_rows=tile_rows, hadamard=hadamard, stream=7)
    seeds = [None] if scale == "four_six" else [None, torch.tensor([2**40 + 3])]
    for seed, centred, layout in itertools.product(seeds, [False, True], ["plain", "transposed"]):
        centre = {"mean": mean, "rows": rows} if centred else {}
        assert_as_reference(replace(case, x=laid_out(x, layout), seed=seed, **centre))


@pytest.mark.parametrize("seed", [None, torch.tensor([5])])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("format", FORMATS)
def test_every_bf16_magnitude_is_rounded_as_the_reference_does(format: str, axis: int, seed: Tensor | None) -> None:
    finite = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)
    both = torch.cat([finite, -finite])
    # Neighbours in magnitude share a block; what the largest of the tensor is decides where NVFP4 loses bits.
    for exponent in (-126, -14, 0, 127):
        x = torch.where(both.abs() <= 2.0**exponent, both, 0).view(-1, FORMATS[format].block)
        assert_as_reference(Case(along(axis, x), seed=seed, format=format, axis=axis, stream=3))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", FORMATS["mxfp4"].scales)
def test_block_maxima_on_either_side_of_every_boundary(scale: str, axis: int) -> None:
    """MXFP4's rules look at the exponent and the first mantissa bits of a block's largest magnitude."""
    exponents, eighths = torch.tensor([0, 1, 2, 3, 4, 127, 252, 253, 254]), torch.arange(8)
    bits = (exponents[:, None, None] << 23) + (eighths[:, None] << 20) + torch.tensor([-1, 0, 1])
    largest = bits.flatten().clamp(min=0).to(torch.int32).view(torch.float32)
    x = largest[:, None] * torch.linspace(-1, 1, 32)
    assert_as_reference(Case(along(axis, x), format="mxfp4", scale=scale, axis=axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_of_two_scales_with_equal_errors_the_one_for_six_stays(axis: int) -> None:
    x = torch.zeros(2, 32)
    x[0, 0], x[1, 16:] = 2688, 6  # encoding scale 1; the sixes are 6 * 1 or 4 * 1.5
    case = Case(along(axis, x), scale="four_six", axis=axis)
    assert case.quantized()[1][1, 1].float() == 1
    assert_as_reference(case)


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_errors_are_summed_in_the_references_order(axis: int, square: bool) -> None:
    """With scales 1 and 1.5, 0.625 + d and 0.625 - d have errors 0.125 +- d and 0.125 -+ d: over a block that holds
    both the two sums have equal terms in another order, and only their rounding tells them apart.
    """
    blocks, size = 60, 256 if square else 16
    d = 0.1 * torch.rand(blocks, size // 2 - 1)
    d = (d * 2**21).round() / 2**21  # 0.625 +- d, and so the errors, are exact
    x = torch.cat([torch.full((blocks, 1), 6.0), torch.zeros(blocks, 1), 0.625 + d, 0.625 - d], 1)
    x = x.gather(1, torch.rand(blocks, size).argsort(1))
    x[0, 0] = 2688  # encoding scale 1
    x = x.view(6, 10, size // 16, 16).transpose(1, 2).reshape(-1, 160)
    case = Case(along(axis, x), scale="four_six", axis=axis, tile_rows=16 if square else 1)
    fours = (case.quantized()[1].float() == 1.5).sum()
    assert 5 < fours < blocks - 5
    assert_as_reference(case)


@pytest.mark.parametrize("poison", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 16])
def test_one_nan_or_infinity_poisons_nvfp4(poison: float, dtype: torch.dtype, axis: int, tile_rows: int) -> None:
    for where in [(0, 0), (36, 68), (17, 15)]:
        x = torch.randn(37, 69).to(dtype)
        x[where] = poison
        case = Case(x, axis=axis, tile_rows=tile_rows)
        codes, scales, tensor_scale = case.quantized()
        assert tensor_scale.isnan()
        assert not codes.any()
        assert not scales.view(torch.uint8).any()
        for variant in ({"seed": torch.tensor([1])}, {"hadamard": True}, {"scale": "four_six"}):
            assert_as_reference(replace(case, **variant))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("seed", [None, torch.tensor([1])])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 32])
def test_nan_or_infinity_poisons_its_block_of_mxfp4(
    poison: float, seed: Tensor | None, axis: int, tile_rows: int
) -> None:
    x = -torch.rand(70, 70)
    healthy = x.clone()
    x[40, 40], healthy[32:64, 32:64] = poison, 0  # a whole tile, which contains the block
    case = Case(x, seed=seed, format="mxfp4", axis=axis, tile_rows=tile_rows)
    codes, scales, tensor_scale = case.quantized()
    assert tensor_scale == 1
    row = 1 if tile_rows == 32 else 40
    assert scales[row, 1].isnan()
    assert scales.isnan().sum() == 1
    assert not codes[40, 16:32].any()
    expected = replace(case, x=healthy).quantized()[0]
    outside = torch.ones_like(codes, dtype=torch.bool)
    outside[32:64, 16:32] = False
    assert torch.equal(codes[outside], expected[outside])
    for variant in ({}, {"hadamard": True}, {"x": x.bfloat16()}):
        assert_as_reference(replace(case, **variant))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mean_that_is_not_finite_or_overflows_poisons(axis: int, format: str) -> None:
    x = torch.full((20, 40), 3e38)
    for bad in (float("nan"), float("inf"), -3e38):
        mean = torch.zeros(40)
        mean[39] = bad
        for layout in ("plain", "transposed"):
            case = Case(laid_out(x, layout), mean, format=format, axis=axis)
            _, scales, tensor_scale = case.quantized()
            assert tensor_scale.isnan() or scales.isnan().any()
            assert_as_reference(case)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("format", FORMATS)
def test_a_transform_may_overflow_meet_nan_and_vanish(format: str, axis: int) -> None:
    nans = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    for special in (torch.full((16,), 3e38), torch.full((16,), -2e38), nans, torch.full((16,), 1e-45)):
        x = torch.randn(40, 70) * 1e-40
        x[3, : len(special)] = special
        x[20:36, 50] = special.repeat(16)[:16]
        for dtype in (torch.float32, torch.bfloat16):
            assert_as_reference(Case(x.to(dtype), format=format, axis=axis, hadamard=True))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_with_the_mean_is_rounded_before_it_is_subtracted(transposed: bool) -> None:
    rows, mean = torch.rand(40), torch.randn(70)
    x = rows[:, None] * mean  # what a fused multiply-add leaves of it is not zero
    x = x.t().contiguous().t() if transposed else x
    assert not Case(x, mean, rows).quantized()[0].any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_the_number_of_threads_changes_nothing(format: str, axis: int, square: bool) -> None:
    x, mean, seed = torch.randn(200, 700), torch.randn(700), torch.tensor([9])
    tile_rows = FORMATS[format].block if square else 1
    case = Case(x, mean, torch.ones(200), seed, format, axis=axis, tile_rows=tile_rows, hadamard=True, stream=1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(case.quantized())
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], result, strict=True))
    assert_as_reference(case)


@pytest.mark.parametrize("hadamard", [False, True])
def test_identity_keeps_the_values(hadamard: bool) -> None:
    x = torch.randn(5, 7).bfloat16()
    codes, scales, tensor_scale = torch.ops.spectral.quantize(x, None, None, None, "identity", "", 0, 1, hadamard, 0)
    assert same_bits(codes, torch.ops.spectral.hadamard(x, 0).t().contiguous() if hadamard else x.t().contiguous())
    assert scales.numel() == 0
    assert tensor_scale == 1


@pytest.mark.parametrize(
    ("format", "scale", "axis", "tile_rows"),
    [
        *(("nvfp4", "amax", 1, 32), ("nvfp4", "floor", 0, 1), ("nvfp4", "amax", 2, 1), ("nvfp4", "four_six", 1, 1)),
        *(("mxfp4", "floor", 1, 16), ("mxfp4", "amax", 0, 1), ("mxfp8", "floor", 1, 1)),
    ],
)
def test_a_quantiser_that_does_not_exist_is_refused(format: str, scale: str, axis: int, tile_rows: int) -> None:
    with pytest.raises(ValueError, match=r"format|rule|rows|axis|stochastic"):
        torch.ops.spectral.quantize(
            *(torch.ones(16, 16), None, None, torch.tensor([1]), format, scale, axis, tile_rows, False, 0)
        )
