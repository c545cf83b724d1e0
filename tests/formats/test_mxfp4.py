"""MXFP4's scales: what each rule promises, edges, poison. (Codes and scales to the bit: test_golden.)"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spectral_compile.formats import FORMATS, dequantize, quantize
from spectral_compile.formats.blocks import to_blocks
from spectral_compile.formats.mxfp4 import block_scales
from tests.formats.inputs import DISTRIBUTIONS, FLT_MAX, SMALLEST, codes_of, gaussian, scale_bytes

RULES = FORMATS["mxfp4"].scales
# What each rule says of the scaled maximum: the ends, and whether the lower one is included, and the upper one.
RANGES = {
    "floor": (4, 8, True, False),
    "ceil": (2, 4, False, True),
    "rceil": (3, 6, False, True),
    "even": (3.5, 7, True, False),
}


@pytest.mark.parametrize("values", DISTRIBUTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_a_block_maximum_lands_where_its_rule_says(values: Callable[[int, int], Tensor], rule: str) -> None:
    x = values(64, 64 * 32)
    largest = x.view(64, 64, 32).abs().amax(2).double()
    scaled = largest / quantize(x, "mxfp4", scale=rule).scales.float().double()
    low, high, with_low, with_high = RANGES[rule]
    assert ((scaled >= low) if with_low else (scaled > low)).all()
    assert ((scaled <= high) if with_high else (scaled < high)).all()
    assert scaled.min() <= low + 0.5  # the whole of it
    assert scaled.max() >= high - 0.5


@pytest.mark.parametrize("rule", RULES)
def test_what_values_are_multiplied_by_is_the_scale_s_reciprocal(rule: str) -> None:
    x = torch.zeros(254, 32)
    x[:, 0] = 3.75 * torch.exp2(torch.arange(-127, 127))
    scales, inverse = block_scales(to_blocks(x, 32, 1), torch.ones(()), rule)
    assert (scales.float() * inverse == 1).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_block_of_zeros_has_the_smallest_scale_and_keeps_its_signs(rule: str) -> None:
    x = torch.tensor([0.0, -0.0] * 32)
    q = quantize(x, "mxfp4", scale=rule)
    assert scale_bytes(q).tolist() == [0, 0]
    assert codes_of(q).tolist() == [0, 8] * 32
    back = dequantize(q, "mxfp4", 64)
    assert (back == 0).all()
    assert torch.equal(back.signbit(), x.signbit())


@pytest.mark.parametrize("rule", RULES)
def test_subnormals_are_rounded_to_halves_of_the_smallest_scale(rule: str) -> None:
    """2**-128 is the smallest value; 2**-129 is a tie, to even, which is 0."""
    x = torch.tensor([2.0**-127, 2.0**-128, 2.0**-129, 2.0**-129 + SMALLEST, -SMALLEST] + [0.0] * 27)
    back = dequantize(quantize(x, "mxfp4", scale=rule), "mxfp4", 32)
    assert back[:5].tolist() == [2.0**-127, 2.0**-128, 0, 2.0**-128, 0]
    assert back[4].signbit()


def test_the_largest_numbers_saturate_with_floor_and_leave_fp32_with_the_other_rules() -> None:
    """Never a wrong finite number but for floor's clipping at 6, which is that rule's: from 3.5 * 2**126 on the others
    round to 4 * 2**126 = 2**128, which fp32 (and bf16) cannot hold, and Inf is loud.
    """
    x = torch.zeros(4, 32)
    x[:, 0] = torch.tensor([FLT_MAX, 3.5 * 2.0**126, 3.5 * 2.0**126 - 2.0**104, -FLT_MAX])
    for rule in RULES:
        back = dequantize(quantize(x, "mxfp4", scale=rule), "mxfp4", 32)
        if rule == "floor":
            assert back[:, 0].tolist() == [6 * 2.0**125, 6 * 2.0**125, 6 * 2.0**125, -6 * 2.0**125]
        else:
            assert back[[0, 1, 3], 0].tolist() == [math.inf, math.inf, -math.inf]
            assert back[2, 0] == 3 * 2.0**126
        assert (back[:, 1:] == 0).all()


def test_a_huge_outlier_flushes_its_own_block_alone() -> None:
    x = gaussian(1, 96)
    x[0, 40] = -1e38
    for rule in RULES:
        q, alone = quantize(x, "mxfp4", scale=rule), quantize(x[:, 64:], "mxfp4", scale=rule)
        assert torch.equal(codes_of(q)[:, 64:], codes_of(alone))
        codes = codes_of(q)[0, 32:64]
        assert codes[8] >= 8 + 4
        assert (codes[torch.arange(32) != 8] & 7 == 0).all()


@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("seed", [None, torch.tensor(3)], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("tile_rows", [1, 32])
@pytest.mark.parametrize("rule", RULES)
def test_nan_or_inf_poisons_its_block_and_nothing_else(
    poison: float, seed: Tensor | None, tile_rows: int, rule: str
) -> None:
    x = gaussian(40, 70)
    clean = quantize(x, "mxfp4", scale=rule, tile_rows=tile_rows, seed=seed)
    x[7, 33] = poison
    q = quantize(x, "mxfp4", scale=rule, tile_rows=tile_rows, seed=seed)
    back = dequantize(q, "mxfp4", 70)

    inside = torch.zeros(40, 70, dtype=torch.bool)
    inside[slice(7, 8) if tile_rows == 1 else slice(0, 32), 32:64] = True
    assert back[inside].isnan().all()
    assert torch.equal(back[~inside], dequantize(clean, "mxfp4", 70)[~inside])
    assert (codes_of(q)[:, :70][inside] == 0).all()
    assert (scale_bytes(q) == 255).nonzero().tolist() == [[7 if tile_rows == 1 else 0, 1]]
    assert q.tensor_scale == 1


def test_after_a_hadamard_transform_poison_still_stays_in_its_block() -> None:
    x = gaussian(2, 96)
    x[0, 40] = math.inf
    back = dequantize(quantize(x, "mxfp4", hadamard=True), "mxfp4", 96)
    assert back[0, 32:64].isnan().all()
    assert back.isnan().sum() == 32
