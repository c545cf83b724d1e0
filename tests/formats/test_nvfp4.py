"""NVFP4's scales: what each rule promises, the tensor scale, poison. (Codes and scales to the bit: test_golden.)"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral_compile.formats import FORMATS, dequantize, e2m1, quantize
from spectral_compile.formats.blocks import block_sum, to_blocks
from spectral_compile.formats.nvfp4 import block_scales, encode_scale, tensor_scale
from spectral_compile.formats.quantized import block_values
from tests.formats.inputs import DISTRIBUTIONS, FLT_MAX, codes_of, gaussian, heavy_tailed, scale_bytes
from tests.scalar import nvfp4 as scalar
from tests.scalar.floats import F, e4m3_nearest
from tests.scalar.nvfp4 import sum_of_pairs

Distribution = Callable[[int, int], Tensor]
RULES = FORMATS["nvfp4"].scales
NORMAL = 2.0**-6  # the smallest normal E4M3 value


def before_clamping(x: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """E4M3 scales [rows, blocks] and |y| [rows, blocks, 16]."""
    blocks = to_blocks(x, 16, 1)
    scales, inverse = block_scales(blocks, x.abs().amax(), rule)
    return scales.float().flatten(1), (blocks * inverse).abs().squeeze(1)


def squared_errors(x: Tensor, rule: str) -> Tensor:
    """Of each block [rows, blocks], in doubles."""
    error = dequantize(quantize(x, scale=rule), "nvfp4", x.shape[1]).double() - x
    return to_blocks(error.square(), 16, 1).sum((-3, -1))


# headroom ------------------------------------------------------------------------------------------------------------


def test_headroom_keeps_every_value_within_6_where_amax_does_not() -> None:
    """In E4M3's normal range, where rounding a scale loses at most 1/17 of it; to fp32's rounding."""
    for values in DISTRIBUTIONS:
        x = values(256, 64 * 16)
        scales, y = before_clamping(x, "headroom")
        assert (scales >= NORMAL).float().mean() > 0.1
        assert y[scales >= NORMAL].max() <= 6 * (1 + 2**-21)
        scales, y = before_clamping(x, "amax")
        assert y[scales >= NORMAL].max() > 6.1


def test_headroom_just_suffices_for_the_worst_block() -> None:
    """Half-way between 1 and 9/8 a scale is rounded down, to even, by 1/17; with a tensor maximum of 448 a block's
    maximum is its exact scale.
    """
    x = torch.zeros(3, 16)
    x[:, 0] = torch.tensor([448, 1, 1 + 2.0**-20])
    scales, y = before_clamping(x, "headroom")
    assert scales.flatten().tolist() == [448, 1, 1.125]
    assert y[1, 0, 0] == pytest.approx(6, rel=2**-21)
    x[1, 0] = 17 / 16
    scales, y = before_clamping(x, "amax")
    assert scales[1, 0] == 1
    assert y[1, 0, 0] == pytest.approx(6 * 17 / 16, rel=2**-21)


def test_headroom_removes_the_bias_of_stochastic_rounding_and_amax_has_it() -> None:
    """Each block's largest element, whose mean over many draws should be itself: 256 Gaussian blocks, 1024 draws."""
    x = torch.cat([gaussian(1, 256 * 16), torch.tensor([[8.0] + [0.0] * 15])], 1)  # the largest of all is elsewhere
    largest = to_blocks(x, 16, 1)[0, 0, :256].abs().amax(1)

    def bias(rule: str) -> float:
        back = dequantize(quantize(x.expand(1024, -1), scale=rule, seed=torch.tensor(5)), "nvfp4", x.shape[1])
        at = to_blocks(x, 16, 1)[0, 0, :256].abs().argmax(1)
        drawn = back.view(1024, 257, 16)[:, torch.arange(256), at].abs().double()
        return (drawn.mean(0) / largest - 1).mean().item()

    # A 512th of a step, which is a third of the maximum at most, and five standard errors of 256 x 1024 draws.
    assert abs(bias("headroom")) < 1 / 512 / 3 + 5 * (1 / 6) / 512
    assert bias("amax") < -0.008


def test_with_headroom_the_expected_value_is_a_512th_of_a_step_low_and_with_amax_lower() -> None:
    """Exactly, over all 256 random bytes, in all Gaussian blocks with normal scales."""
    x = gaussian(64, 16 * 16)

    def shortfall(rule: str) -> float:
        """Mean over elements of (|y| - E |q|) / step."""
        _, y = before_clamping(x, rule)
        codes = e2m1.encode_stochastic(y.clamp(max=6)[..., None].expand(-1, -1, -1, 256), torch.arange(256))
        expected = torch.tensor(e2m1.MAGNITUDES)[codes.long()].double().mean(-1)
        step = torch.where(y >= 4, 2.0, torch.where(y >= 2, 1.0, 0.5))
        return ((y - expected) / step).mean().item()

    assert shortfall("headroom") == pytest.approx(1 / 512, rel=0.05)
    assert shortfall("amax") > 1.5 / 512


# four_six ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", DISTRIBUTIONS)
def test_four_six_never_has_the_larger_error_and_often_the_smaller(values: Distribution) -> None:
    x = values(64, 64 * 16)
    amax, four_six = squared_errors(x, "amax"), squared_errors(x, "four_six")
    assert (four_six <= amax * (1 + 1e-6)).all()
    assert (four_six < amax * 0.9).float().mean() > (0.001 if values is heavy_tailed else 0.1)


@pytest.mark.parametrize("values", DISTRIBUTIONS)
def test_four_six_never_has_the_larger_error_in_a_square_block(values: Distribution) -> None:
    x = values(64, 64)
    errors = []
    for rule in ("four_six", "amax"):
        error = dequantize(quantize(x, scale=rule, tile_rows=16), "nvfp4", 64).double() - x
        errors.append(to_blocks(error.square(), 16, 16).sum((-3, -1)))
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()


def test_four_six_is_exact_on_a_block_that_6_would_spoil() -> None:
    """Three quarters of the maximum: 4.5, a tie, when the maximum is 6; 3 when it is 4."""
    x = torch.zeros(2, 16)
    x[0], x[1] = torch.tensor([8.0] + [6.0] * 15), 2688
    assert scale_bytes(quantize(x, scale="four_six"))[0, 0] == torch.tensor(2.0).to(torch.float8_e4m3fn).view(
        torch.uint8
    )
    assert codes_of(quantize(x, scale="four_six"))[0].tolist() == [6] + [5] * 15
    assert squared_errors(x, "four_six")[0, 0] == 0
    assert squared_errors(x, "amax")[0, 0] > 1


@pytest.mark.parametrize("block", [[6.0] + [0.0] * 15, [-12.0] + [0.0] * 15, [0.0] * 16, [0.0, 1e-9] * 8])
def test_four_six_prefers_6_where_errors_are_equal(block: list[float]) -> None:
    x = torch.tensor([block, [2688.0] * 16])
    one, other = quantize(x, scale="four_six"), quantize(x, scale="amax")
    assert torch.equal(scale_bytes(one), scale_bytes(other))
    assert torch.equal(one.codes, other.codes)


def test_four_six_keeps_6_where_one_and_a_half_times_the_scale_would_not_fit() -> None:
    x = torch.tensor([[448.0] + [336.0] * 15])  # three quarters of the maximum again, but of the tensor's
    assert quantize(x, scale="four_six").scales.float().item() == 448


@pytest.mark.parametrize(("rows", "cols"), [(1, 16), (16, 16), (32, 32)])
def test_a_block_is_summed_down_its_rows_in_pairs_and_then_across(rows: int, cols: int) -> None:
    x = gaussian(40 * rows, cols).view(40, rows, 1, cols)
    got = block_sum(x)
    assert got.shape == (40, 1, 1, 1)
    across = [[sum_of_pairs(list(row)) for row in block] for block in x[:, :, 0].numpy()]
    down = [[sum_of_pairs(list(column)) for column in block.T] for block in x[:, :, 0].numpy()]
    assert got.flatten().tolist() == [float(sum_of_pairs(sums)) for sums in down]
    assert rows == 1 or got.flatten().tolist() != [float(sum_of_pairs(sums)) for sums in across]


@pytest.mark.parametrize("tile_rows", [1, 16])
def test_four_six_decides_by_that_sum_where_another_order_decides_otherwise(tile_rows: int) -> None:
    """Blocks on the edge, in a tensor with the largest magnitude 448, where a block's is its scale."""
    noise = gaussian(20 * tile_rows, 16).numpy()
    blocks = [on_edge for block in np.split(noise, 20) for on_edge in _on_the_edge(block)]
    assert any(_prefers_four(block) != _prefers_four(block, np.sum) for block in blocks)
    rows = torch.from_numpy(np.concatenate([*blocks, np.full((tile_rows, 16), 448, np.float32)]))
    got = quantize(rows, scale="four_six", tile_rows=tile_rows).scales.float()[:-1, 0].tolist()
    assert got == [7.5 if _prefers_four(block) else 5 for block in blocks]


def _on_the_edge(noise: np.ndarray) -> list[np.ndarray]:
    """Two blocks, an ulp of one element apart, of which one wants its maximum of 5 to be 4 and the other 6.

    Three quarters of the maximum is exact in the one, two thirds in the other: mix those, then move one element.
    """

    def mixed(four: F) -> np.ndarray:
        block = (four * F(5 * 3 / 4) + (F(1) - four) * F(5 * 4 / 6)) * (1 + noise / F(50))
        block[0, 0] = 5
        return block

    def moved(element: F) -> np.ndarray:
        block = wants_six.copy()
        block[0, 1] = element
        return block

    wants_six, _ = _bisected(mixed, F(0), F(1))
    return _bisected(moved, wants_six[0, 1], F(5 * 3 / 4))


def _bisected(block: Callable[[F], np.ndarray], wants_six: F, wants_four: F) -> list[np.ndarray]:
    assert _prefers_four(block(wants_four))
    assert not _prefers_four(block(wants_six))
    while (middle := (wants_six + wants_four) / F(2)) not in (wants_six, wants_four):
        if _prefers_four(block(middle)):
            wants_four = middle
        else:
            wants_six = middle
    return [block(wants_six), block(wants_four)]


def _prefers_four(block: np.ndarray, total: Callable[[np.ndarray], F] = scalar.block_sum) -> bool:
    """As the rule does; or by another sum of the same squares."""
    encode = scalar.encode_scale(F(448))
    four, six = (total(scalar.squares(block, e4m3_nearest(scale), encode)) for scale in (F(7.5), F(5)))
    return bool(four < six)


# The tensor scale ----------------------------------------------------------------------------------------------------


def test_tensor_scale_is_amax_divided_by_2688_not_times_a_reciprocal() -> None:
    amax = gaussian(1, 4096)[0].abs()
    expected = amax.numpy() / np.float32(2688)
    assert (amax.numpy() * np.float32(1 / 2688) != expected).any()  # else this would tell nothing
    np.testing.assert_array_equal(tensor_scale(amax).numpy(), expected)


def test_encode_scale_is_finite_and_1_for_zero() -> None:
    amax = torch.tensor([0.0, 2.0**-149, 1e-38, 2688.0, FLT_MAX])
    assert encode_scale(amax).tolist()[::3] == [1, 1]
    assert (encode_scale(amax)[1:3] == FLT_MAX).all()
    assert encode_scale(amax)[4] > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("amax", [1e-34, 1e-30, 1.0, 12345.678, 1e30, FLT_MAX])
def test_the_largest_magnitude_survives_to_fp32_rounding(amax: float, rule: str) -> None:
    x = torch.tensor([[1e-3, -1.0, 0.25] + [0.0] * 20]) * amax
    back = dequantize(quantize(x, scale=rule), "nvfp4", x.shape[1])
    assert back[0, 1].item() == pytest.approx(x[0, 1].item(), rel=2**-20 if amax == 1e-34 else 2**-22)
    assert back.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_the_largest_finite_numbers_give_finite_values(rule: str) -> None:
    x = torch.full((16, 16), FLT_MAX)
    x[1:] *= torch.linspace(0.5, 1, 15)[:, None]
    back = dequantize(quantize(x, scale=rule), "nvfp4", 16)
    assert back.isfinite().all()
    torch.testing.assert_close(back.double(), x.double(), rtol=0.2, atol=0)


def test_a_tensor_below_2688_over_the_largest_float_comes_back_as_large_as_it_was() -> None:
    """There the encoding scale saturates; the published decoding scale, amax / 2688, would go on falling."""
    limit = 2688 / FLT_MAX
    for amax in (2 * limit, limit, limit / 2, limit / 1.5, limit / 2**8):
        x = torch.full((1, 16), amax)
        back = dequantize(quantize(x), "nvfp4", 16)
        torch.testing.assert_close(back.double(), x.double(), rtol=2**-4, atol=0)  # E4M3's rounding
    assert dequantize(quantize(torch.full((1, 16), limit / 2**20)), "nvfp4", 16).eq(0).all()


# Poison --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("seed", [None, torch.tensor(3)], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("tile_rows", [1, 16])
@pytest.mark.parametrize("hadamard", [False, True])
def test_one_nan_or_inf_poisons_the_whole_tensor(
    poison: float, seed: Tensor | None, tile_rows: int, hadamard: bool
) -> None:
    x = gaussian(20, 40)
    x[7, 33] = poison
    for rule in RULES if seed is None else RULES[:2]:
        q = quantize(x, scale=rule, tile_rows=tile_rows, hadamard=hadamard, seed=seed)
        assert q.tensor_scale.isnan()
        assert (q.codes == 0).all()
        assert (scale_bytes(q) == 0).all()
        assert dequantize(q, "nvfp4", 40).isnan().all()


def test_a_hadamard_transform_that_overflows_poisons() -> None:
    """Sums of sixteen may leave fp32, and rounding to bf16 too: NaN then, never a wrong number."""
    for x in (torch.full((2, 16), FLT_MAX), torch.tensor([[FLT_MAX] + [0.0] * 15]) * 4):
        assert quantize(x, hadamard=True).tensor_scale.isnan()
    one = torch.tensor([[FLT_MAX] + [0.0] * 15])
    assert quantize(one, hadamard=True).tensor_scale == tensor_scale(torch.tensor(2.0**126))


def test_zeros_stay_zeros_with_their_signs() -> None:
    x = torch.tensor([[0.0, -0.0] * 8])
    for rule in RULES:
        back = dequantize(quantize(x, scale=rule), "nvfp4", 16)
        assert (back == 0).all()
        assert torch.equal(back.signbit(), x.signbit())


def test_blocks_too_small_for_a_scale_become_zeros_with_their_signs() -> None:
    x = torch.cat([torch.full((1, 16), -1e-6), torch.full((1, 16), 448.0)])
    q = quantize(x)
    assert scale_bytes(q)[0, 0] == 0
    values = block_values(q, "nvfp4")[0]
    assert (values == 0).all()
    assert values.signbit().all()
