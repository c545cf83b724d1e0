"""spectral::quantize on the CPU against its reference: no byte of codes, scales or amax may differ."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.ops.quantize import quantize as reference

pytestmark = pytest.mark.usefixtures("library")

# Around the lengths of a block (16), a vector of blocks (256), a strip (64 columns, 128 rows).
SIZES = (0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 130, 255, 257, 300)
LARGEST = {torch.bfloat16: 3.3895e38, torch.float16: 65504.0, torch.float32: 3.4028235e38}
EDGES = (0.0, -0.0, 1e-45, -1e-45, 1e-39, 1.2e-38, 1e-30, 6e-8, 1e-5, -1e-5, 0.25, 1.0, -6.0, 448.0, 3e4)


@dataclass(frozen=True)
class Case:
    x: Tensor
    mean: Tensor | None
    rows: Tensor | None
    seed: Tensor | None
    axis: int
    tile_rows: int
    stream: int

    def arguments(self) -> tuple:
        return (self.x, self.mean, self.rows, self.seed, "nvfp4", self.axis, self.tile_rows, self.stream)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(whole), b.view(whole))


def assert_as_reference(case: Case) -> None:
    got, expected = torch.ops.spectral.quantize(*case.arguments()), reference(*case.arguments())
    for name, a, b in zip(("codes", "scales", "amax"), got, expected, strict=True):
        assert a.is_contiguous(), name
        assert same_bits(a, b), name


def values(rows: int, cols: int, kind: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A matrix [rows, cols] of one kind of numbers."""
    x = torch.randn(rows, cols, generator=generator)
    if kind == "outliers":
        x *= torch.exp(4 * torch.randn(rows, cols, generator=generator))
    elif kind == "edges":
        pool = torch.tensor([*EDGES, LARGEST[dtype], -LARGEST[dtype] / 3])
        # Mostly small ones: the largest value sets the scale of all others.
        index = torch.randint(len(pool) - 2, (rows, cols), generator=generator)
        rare = torch.rand(rows, cols, generator=generator) < 0.001
        x = pool[torch.where(rare, torch.randint(len(pool), (rows, cols), generator=generator), index)]
    elif kind == "subnormal":
        x *= 1e-40 if dtype != torch.float16 else 1e-6
    elif kind == "ties":  # a largest value of 6 makes every scale 1 and these the values that are rounded
        x = (x * 4).round().clamp(-24, 24) / 4
        x[:, ::16] = 6
    elif kind == "zeros":
        x = torch.where(x > 1, x, 0.0 * x)
    return x.to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    rows, cols = x.shape
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "padded rows":
        return torch.cat([x, x[:, :3]], 1)[:, :cols]
    if layout == "padded columns":
        return torch.cat([x, x[:5]], 0).t().contiguous().t()[:rows]
    if layout == "every other":
        return x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    if layout == "offset":
        return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(rows, cols) if x.numel() else x
    if layout == "expanded":
        return x[:1].expand(rows, cols)
    return x


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
    seed = draw(st.none() | st.integers(-(2**63), 2**63 - 1))
    return Case(
        x=x,
        mean=mean if centred else None,
        rows=row_values if centred else None,
        seed=None if seed is None else torch.tensor([seed]),
        axis=draw(st.sampled_from([0, 1])),
        tile_rows=draw(st.sampled_from([1, 16])),
        stream=draw(st.sampled_from([0, 1, 12345, 2**32 - 1])),
    )


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_bit_is_the_references(case: Case) -> None:
    assert_as_reference(case)


@pytest.mark.parametrize("seed", [None, torch.tensor([5])])
@pytest.mark.parametrize("axis", [0, 1])
def test_every_bf16_magnitude_is_rounded_as_the_reference_does(axis: int, seed: Tensor | None) -> None:
    finite = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)
    both = torch.cat([finite, -finite])
    # Neighbours in magnitude share a block; what the largest of the tensor is decides where it loses bits.
    for exponent in (-126, -14, 0, 127):
        x = torch.where(both.abs() <= 2.0**exponent, both, 0).view(-1, 16)
        assert_as_reference(Case(x.t() if axis == 0 else x, None, None, seed, axis, 1, 3))


@pytest.mark.parametrize("poison", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 16])
def test_one_nan_or_infinity_poisons(poison: float, dtype: torch.dtype, axis: int, tile_rows: int) -> None:
    for where in [(0, 0), (36, 68), (17, 15)]:
        x = torch.randn(37, 69).to(dtype)
        x[where] = poison
        codes, scales, amax = torch.ops.spectral.quantize(x, None, None, None, "nvfp4", axis, tile_rows, 0)
        assert amax.isnan()
        assert not codes.any()
        assert not scales.view(torch.uint8).any()
        assert_as_reference(Case(x, None, None, torch.tensor([1]), axis, tile_rows, 0))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mean_that_is_not_finite_or_overflows_poisons_the_tensor(axis: int) -> None:
    x = torch.full((20, 40), 3e38)
    for bad in (float("nan"), float("inf"), -3e38):
        mean = torch.zeros(40)
        mean[39] = bad
        case = Case(x, mean, None, None, axis, 1, 0)
        assert torch.ops.spectral.quantize(*case.arguments())[2].isnan()
        assert_as_reference(case)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_product_with_the_mean_is_rounded_before_it_is_subtracted(transposed: bool) -> None:
    rows, mean = torch.rand(40), torch.randn(70)
    x = rows[:, None] * mean  # what a fused multiply-add leaves of it is not zero
    x = x.t().contiguous().t() if transposed else x
    assert torch.ops.spectral.quantize(x, mean, rows, None, "nvfp4", 1, 1, 0)[2] == 0


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("tile_rows", [1, 16])
def test_the_number_of_threads_changes_nothing(axis: int, tile_rows: int) -> None:
    x, mean, seed = torch.randn(200, 700), torch.randn(700), torch.tensor([9])
    case = Case(x, mean, torch.ones(200), seed, axis, tile_rows, 1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(torch.ops.spectral.quantize(*case.arguments()))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], result, strict=True))
    assert_as_reference(case)


def test_identity_keeps_the_values() -> None:
    x = torch.randn(5, 7).bfloat16()
    codes, scales, amax = torch.ops.spectral.quantize(x, None, None, None, "identity", 0, 1, 0)
    assert same_bits(codes, x.t().contiguous())
    assert scales.numel() == 0
    assert amax == 1


@pytest.mark.parametrize(("axis", "tile_rows"), [(1, 2), (0, 32), (2, 1)])
def test_a_quantiser_that_does_not_exist_is_refused_by_every_kernel(library: None, axis: int, tile_rows: int) -> None:
    with pytest.raises(ValueError, match="no such quantiser"):
        torch.ops.spectral.quantize(torch.ones(16, 16), None, None, None, "nvfp4", axis, tile_rows, 0)
