"""Codes and scales against the scalar implementation, bit for bit."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import FORMATS, quantize
from tests.formats.inputs import (
    DISTRIBUTIONS,
    EDGES,
    QUANTISERS,
    RULES,
    TILES,
    assert_golden,
    codes_of,
    gaussian,
    matrices,
    scale_bytes,
)
from tests.scalar import mxfp4
from tests.scalar.floats import E2M1, E4M3_FLOATS, nearest, ties

Distribution = Callable[[int, int], Tensor]
STOCHASTIC = [(format, rule) for format, rule in RULES if rule != "four_six"]
E2M1_TIES = [float(tie) for tie in ties(E2M1)]
E4M3_TIES = [(low + high) / 2 for low, high in itertools.pairwise(E4M3_FLOATS)]


@pytest.mark.parametrize("values", DISTRIBUTIONS)
@pytest.mark.parametrize(("format", "rule"), RULES)
def test_sixteen_thousand_blocks_in_all(values: Distribution, format: str, rule: str) -> None:
    assert_golden(values(64, 64 * FORMATS[format].block), format, rule)


@pytest.mark.parametrize("values", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", [(96, 160), (37, 83)], ids=str)
@pytest.mark.parametrize(("format", "rule"), RULES)
def test_square_blocks(values: Distribution, shape: tuple[int, int], format: str, rule: str) -> None:
    assert_golden(values(*shape), format, rule, FORMATS[format].block)


@pytest.mark.parametrize("values", DISTRIBUTIONS)
@pytest.mark.parametrize(("format", "rule"), STOCHASTIC)
def test_stochastic_rounding(values: Distribution, format: str, rule: str) -> None:
    assert_golden(values(64, 16 * FORMATS[format].block), format, rule, seed=-5, stream=2**32 - 1)
    assert_golden(values(50, 90), format, rule, FORMATS[format].block, seed=2**40 + 1, stream=3)


@pytest.mark.parametrize("values", DISTRIBUTIONS)
@pytest.mark.parametrize(("format", "rule"), RULES)
def test_after_a_hadamard_transform(values: Distribution, format: str, rule: str) -> None:
    assert_golden(values(32, 16 * FORMATS[format].block), format, rule, hadamard=True)
    assert_golden(values(37, 83), format, rule, FORMATS[format].block, hadamard=True)
    assert_golden(values(37, 83), format, hadamard=True, seed=8)


@given(matrices(), st.sampled_from(QUANTISERS))
@settings(max_examples=200)
def test_any_finite_matrix(x: Tensor, quantiser: tuple[str, str, int]) -> None:
    assert_golden(x, *quantiser, values=True)


@given(matrices(), st.sampled_from(STOCHASTIC), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=100)
def test_any_finite_matrix_rounded_stochastically(
    x: Tensor, quantiser: tuple[str, str], seed: int, stream: int, data: st.DataObject
) -> None:
    tile_rows = data.draw(st.sampled_from([1, FORMATS[quantiser[0]].block]))
    assert_golden(x, *quantiser, tile_rows, seed=seed, stream=stream)


@given(matrices(), st.sampled_from(QUANTISERS))
def test_any_matrix_that_a_hadamard_transform_leaves_finite(x: Tensor, quantiser: tuple[str, str, int]) -> None:
    assert_golden(x / 16, *quantiser, hadamard=True, values=True)


@pytest.mark.parametrize(("format", "tile_rows"), TILES)
@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, format: str, tile_rows: int) -> None:
    for rule in FORMATS[format].scales:
        assert_golden(EDGES[name], format, rule, tile_rows, values=True)
    assert_golden(EDGES[name], format, None, tile_rows, seed=11)


def test_every_nvfp4_scale_is_produced_and_every_tie_between_scales_goes_to_the_even_one() -> None:
    """With a tensor maximum of 448 a block's maximum *is* its scale, before it is rounded."""
    ties_ = np.array(E4M3_TIES, np.float32)
    even = [c + c % 2 for c in range(126)]
    for largest, expected in (
        (np.array(E4M3_FLOATS), range(127)),
        (ties_, even),
        (np.nextafter(ties_, np.float32(0)), range(126)),
        (np.nextafter(ties_, np.float32(999)), range(1, 127)),
    ):
        x = torch.zeros(len(largest) + 1, 16)
        x[:-1, 5] = torch.from_numpy(largest)
        x[-1, 0] = -448
        assert scale_bytes(quantize(x))[:-1, 0].tolist() == list(expected)
        for rule in FORMATS["nvfp4"].scales:
            assert_golden(x, "nvfp4", rule)


@pytest.mark.parametrize("rule", FORMATS["nvfp4"].scales)
def test_nvfp4_codes_on_and_beside_every_tie_at_every_scale(rule: str) -> None:
    """With a tensor maximum of 2688 nothing is scaled but the block."""
    around = torch.from_numpy(_around(E2M1_TIES))
    rows = around.view(3, 14) * torch.tensor(E4M3_FLOATS)[:, None, None]
    x = torch.cat([6 * torch.tensor(E4M3_FLOATS)[:, None, None].expand(127, 3, 1), rows], -1).view(-1, 15)
    assert x.abs().max() == 2688
    assert_golden(x, "nvfp4", rule)


def test_nvfp4_ties_between_codes_go_to_the_even_one_at_scales_that_are_powers_of_two() -> None:
    below = [nearest(tie - 0.01, [float(v) for v in E2M1]) for tie in E2M1_TIES]
    even = [c + c % 2 for c in below]
    above = [c + 1 for c in below]
    for exponent in range(-9, 9):
        x = torch.zeros(4, 16)
        x[:3, 0], x[3, 0] = 6 * 2.0**exponent, 2688
        x[:3, 1:15] = torch.from_numpy(_around(E2M1_TIES)) * 2.0**exponent
        codes = codes_of(quantize(x))[:3, 1:15]
        assert codes.tolist() == [row + [c + 8 for c in row] for row in (below, even, above)]


LARGEST_MULTIPLE = {
    "floor": 7.0,
    "ceil": 4.0,
    "rceil": 6.0,
    "even": 6.5,
}  # of 2**E that a block with scale 2**E can hold
BYTES = {"floor": range(253), "ceil": range(254), "rceil": range(254), "even": range(254)}


@pytest.mark.parametrize("rule", FORMATS["mxfp4"].scales)
def test_every_mxfp4_scale_that_a_finite_number_can_have_is_produced(rule: str) -> None:
    """254 and 255 are beyond: the largest finite number is below 2**128 = 4 * 2**126."""
    multiple = 4.0 if rule == "floor" else 3.75
    largest = [multiple * 2.0 ** (byte - 127) for byte in BYTES[rule]]
    x = torch.zeros(len(largest), 32)
    x[:, 31] = -torch.tensor(largest)
    assert scale_bytes(quantize(x, "mxfp4", scale=rule))[:, 0].tolist() == list(BYTES[rule])
    assert_golden(x, "mxfp4", rule)


@pytest.mark.parametrize("rule", FORMATS["mxfp4"].scales)
def test_mxfp4_codes_on_and_beside_every_tie_at_every_scale(rule: str) -> None:
    """Powers of two: y is exact, so the codes are those of the ties themselves at every scale."""
    largest = LARGEST_MULTIPLE[rule]
    ties_ = [tie for tie in E2M1_TIES if tie < largest]
    below = [nearest(tie - 0.01, [float(v) for v in E2M1]) for tie in ties_]
    even = [c + c % 2 for c in below]
    above = [c + 1 for c in below]
    count = 2 * len(ties_)
    scales = torch.exp2(torch.arange(-127, 126, dtype=torch.float64)).to(torch.float32)[:, None, None]
    x = torch.zeros(253, 3, 32)
    x[:, :, :1] = scales * largest
    x[:, :, 1 : 1 + count] = torch.from_numpy(np.stack([_around(ties_, scale) for scale in scales.flatten().tolist()]))
    q = quantize(x, "mxfp4", scale=rule)
    assert (scale_bytes(q)[..., 0] == torch.arange(253)[:, None]).all()
    expected = [row + [c + 8 for c in row] for row in (below, even, above)]
    assert (codes_of(q)[:, :, 1 : 1 + count] == torch.tensor(expected)).all()


@pytest.mark.parametrize("rule", FORMATS["mxfp4"].scales)
def test_mxfp4_scales_are_what_their_rules_say_in_every_binade(rule: str) -> None:
    """Every exponent, subnormals included, with the mantissas at and beside which a rule changes its mind."""
    steps = (0, 1, 1 << 21, 1 << 22, 3 << 21, (1 << 23) - 1)
    mantissas = sorted({m + d for m in steps for d in (-1, 0, 1) if 0 <= m + d < 1 << 23})
    bits = (torch.arange(255)[:, None] << 23) + torch.tensor(mantissas)
    largest = bits.flatten().to(torch.int32).view(torch.float32)
    x = torch.zeros(len(largest), 32)
    x[:, 7] = largest
    got = scale_bytes(quantize(x, "mxfp4", scale=rule))[:, 0].tolist()
    assert got == [mxfp4.scale_byte(a, rule) for a in largest.tolist()]


def test_nvfp4_multiplies_where_nvidia_multiplies() -> None:
    x = gaussian(32, 64 * 16).bfloat16().float()
    x[0, 0] = 6.0  # with this amax and bf16 blocks, ties in E4M3 are frequent
    assert_golden(x, "nvfp4")
    dividing = (x.view(32, 64, 16).abs().amax(2) / torch.tensor(6.0) * (2688 / x.abs().amax())).to(torch.float8_e4m3fn)
    assert (quantize(x).scales.float() != dividing.float()).float().mean() > 0.005


@pytest.mark.parametrize("format", FORMATS)
def test_no_two_rules_choose_the_same_scales(format: str) -> None:
    """The comparisons above compare something: rules disagree about many ordinary blocks."""
    x = gaussian(64, 64 * 32)
    scales = [scale_bytes(quantize(x, format, scale=rule)) for rule in FORMATS[format].scales]
    for one, other in itertools.combinations(scales, 2):
        assert (one != other).float().mean() > 0.1


def _around(ties_: list[float], scale: float = 1) -> np.ndarray:
    """[3, 2 * ties], times scale: just below in magnitude, at, just above; positive, then negative."""
    middle = np.array(ties_, np.float32) * np.float32(scale)
    rows = [np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(np.inf))]
    return np.array([np.concatenate([row, -row]) for row in rows])
