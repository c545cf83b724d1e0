"""Stochastic rounding from end to end: the right frequencies, and bits that depend on seed and stream alone."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from spectral_compile.formats import FORMATS, dequantize, e2m1, quantize
from tests.fake_kernels import equal_bits
from tests.formats.inputs import codes_of, gaussian
from tests.scalar.floats import E2M1

DRAWS = 1 << 14


def unscaled(values: list[float], rows: int, format: str) -> Tensor:
    """Rows of values (one a block holds, with the 6 put first) that no format scales: y is x."""
    row = torch.zeros(FORMATS[format].block)
    row[0] = 6
    row[1 : 1 + len(values)] = torch.tensor(values)
    x = row.repeat(rows + 1, 1)
    x[rows, 0] = 2688  # NVFP4: the tensor's scale is 1 then
    return x


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", [1, 2, -3])
def test_codes_are_as_frequent_as_the_256_bytes_make_them(format: str, seed: int) -> None:
    """Chi-square over the two codes that each of 14 values can get, two in each interval; seeds are fixed."""
    fractions = [Fraction(37, 256), Fraction(201, 256)]
    values = [float(low + f * (high - low)) for low, high in pairwise(E2M1) for f in fractions]
    x = unscaled([-v for v in values], DRAWS, format)
    codes = codes_of(quantize(x, format, seed=torch.tensor(seed)))[:DRAWS, 1:15]
    lower = torch.arange(7).repeat_interleave(2)
    up = (codes == lower + 9).double().sum(0)
    assert torch.equal(up + (codes == lower + 8).sum(0), torch.full((14,), DRAWS).double())

    probability = torch.tensor([float(f) for f in fractions]).double().repeat(7)
    z_squared = (up - DRAWS * probability) ** 2 / (DRAWS * probability * (1 - probability))
    assert 2 < z_squared.sum() < 45  # 14 degrees of freedom: outside with probability 1e-4 of luck, decided by the seed
    assert z_squared.amax() < 15


@pytest.mark.parametrize("format", FORMATS)
def test_what_e2m1_can_hold_is_left_alone(format: str) -> None:
    x = unscaled([float(v) for v in E2M1] + [-float(v) for v in E2M1[:7]], 500, format)
    codes = codes_of(quantize(x, format, seed=torch.tensor(1)))[:500, :16]
    assert codes.unique(dim=0).tolist() == [[7, *range(8), *range(8, 15)]]


def test_stochastic_rounding_averages_to_the_value_less_a_512th_of_a_step() -> None:
    row = torch.cat([torch.linspace(-6, 6, 15), torch.tensor([6.0])])  # with a block maximum of 6 nothing clips
    x = row.expand(DRAWS, 16)
    back = dequantize(quantize(x, seed=torch.tensor(1)), "nvfp4", 16).to(torch.float64)
    magnitude = row.abs()
    step = torch.where(magnitude >= 4, 2.0, torch.where(magnitude >= 2, 1.0, 0.5))
    bound = step / 256 + 5 * step * 0.5 / DRAWS**0.5  # truncation to 256ths, and five standard errors
    assert ((back.mean(0) - row).abs() <= bound).all()
    assert (back - x).abs().amax() < 2


@pytest.mark.parametrize("format", FORMATS)
def test_random_bits_depend_on_seed_and_stream_and_nothing_else(format: str) -> None:
    x = gaussian(16, 64)

    def codes(seed: int, stream: int) -> Tensor:
        return codes_of(quantize(x, format, seed=torch.tensor(seed), stream=stream))

    assert torch.equal(codes(1, 0), codes(1, 0))
    for other in (codes(2, 0), codes(1, 1), codes(1 + 2**32, 0), codes(1, 2**31)):
        assert 0.1 < (codes(1, 0) != other).float().mean() < 0.6


@pytest.mark.parametrize("format", FORMATS)
def test_the_seed_may_be_of_shape_1_or_scalar(format: str) -> None:
    x = gaussian(4, 32)
    one, scalar = (quantize(x, format, seed=torch.tensor(seed)) for seed in ([9], 9))
    assert torch.equal(one.codes, scalar.codes)


@pytest.mark.parametrize(("format", "rule"), [(f, r) for f in FORMATS for r in FORMATS[f].scales if r != "four_six"])
def test_stochastic_rounding_leaves_the_scales_alone(format: str, rule: str) -> None:
    x = gaussian(16, 64)
    nearest, stochastic = quantize(x, format, scale=rule), quantize(x, format, scale=rule, seed=torch.tensor(1))
    assert equal_bits(nearest.scales, stochastic.scales)
    assert not torch.equal(nearest.codes, stochastic.codes)


def test_equal_neighbours_are_rounded_apart() -> None:
    """Were random bits shared between elements, blocks or rows, some of these would always agree."""
    x = unscaled([2.5] * 15, 200, "nvfp4")[:200].repeat(1, 4)
    up = (codes_of(quantize(x, seed=torch.tensor(1))).view(200, 4, 16)[..., 1:] == e2m1.MAGNITUDES.index(3.0)).flatten(
        1
    )
    for one, other in ((up[:, :-1], up[:, 1:]), (up[:, :-15], up[:, 15:]), (up[:-1], up[1:])):
        assert 0.45 < (one == other).float().mean() < 0.55
