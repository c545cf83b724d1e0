"""NVFP4 in plain torch against the scalar implementation, bit for bit; edges, padding, poison, randomness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import e2m1
from spectral_compile.formats.nvfp4 import (
    BLOCK,
    Quantized,
    block_values,
    dequantize_nvfp4,
    encode_scale,
    quantize_nvfp4,
    tensor_scale,
)
from tests import scalar_nvfp4 as scalar
from tests.fake_kernels import equal_bits

FLT_MAX = torch.finfo(torch.float32).max
SMALLEST = 2.0**-149


def assert_bit_for_bit(
    x: Tensor, tile_rows: int = 1, seed: int | None = None, stream: int = 0, values: bool = False
) -> None:
    """Codes, scales, amax (and dequantised values) are the scalar implementation's."""
    seed_tensor = None if seed is None else torch.tensor(seed)
    q = quantize_nvfp4(x, tile_rows=tile_rows, seed=seed_tensor, stream=stream)
    codes, scales, amax = scalar.quantize(x.float().numpy(), tile_rows, seed, stream)
    assert (q.codes.dtype, q.scales.dtype, q.amax.dtype) == (torch.uint8, torch.float8_e4m3fn, torch.float32)
    assert q.amax.item() == float(amax)
    np.testing.assert_array_equal(q.scales.view(torch.uint8).numpy(), scales)
    np.testing.assert_array_equal(e2m1.unpack(q.codes).numpy(), codes)
    if values:
        expected = scalar.dequantize(codes, scales, amax, tile_rows)[:, : x.shape[1]]
        got = dequantize_nvfp4(q, *x.shape).numpy()
        np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))  # -0 is not 0


def gaussian(rows: int, cols: int) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows * 1000 + cols))


def few_bits(rows: int, cols: int) -> Tensor:
    """bf16 values with blocks that differ in size: many ties, in scales and in elements."""
    x = gaussian(rows, cols).bfloat16().float() * 0.5
    return (x * 8).round() / 8 * torch.exp2((torch.arange(cols) // BLOCK % 12).float())


def wide(rows: int, cols: int) -> Tensor:
    """30 binades: scales that are subnormal or 0 in E4M3, and saturated ones."""
    generator = torch.Generator().manual_seed(5)
    binades = torch.randint(-30, 1, (rows, -(-cols // BLOCK)), generator=generator).repeat_interleave(BLOCK, 1)
    return gaussian(rows, cols) * torch.exp2(binades[:, :cols].float())


@pytest.mark.parametrize("values", [gaussian, few_bits, wide])
def test_thousands_of_1x16_blocks_are_right_bit_for_bit(values: object) -> None:
    assert_bit_for_bit(values(32, 64 * BLOCK))  # type: ignore[operator]


@pytest.mark.parametrize("values", [gaussian, few_bits, wide])
@pytest.mark.parametrize("shape", [(64, 160), (37, 83)], ids=str)
def test_16x16_blocks_are_right_bit_for_bit(values: object, shape: tuple[int, int]) -> None:
    assert_bit_for_bit(values(*shape), tile_rows=16)  # type: ignore[operator]


def test_scales_multiply_where_nvidia_multiplies() -> None:
    x = gaussian(32, 64 * BLOCK).bfloat16().float()
    x[0, 0] = 6.0  # with this amax and bf16 blocks, ties in E4M3 are frequent
    assert_bit_for_bit(x)
    block_amax = x.view(32, 64, BLOCK).abs().amax(2)
    dividing = (block_amax / torch.tensor(6.0) * encode_scale(x.abs().amax())).to(torch.float8_e4m3fn)
    assert (quantize_nvfp4(x).scales.float() != dividing.float()).float().mean() > 0.005


ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
SIZES = st.one_of(ANY_FLOAT, st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, FLT_MAX, -FLT_MAX, 2.0**-126, 6.0]))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Up to 20 x 40, of a few values drawn from all that fp32 has, or of neighbouring magnitudes."""
    rows, cols = draw(st.integers(0, 20)), draw(st.integers(0, 40))
    pool = draw(st.one_of(st.lists(SIZES, min_size=1, max_size=8), st.lists(st.floats(-8, 8, width=32), min_size=1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))
    return torch.tensor(pool)[torch.randint(0, len(pool), (rows, cols), generator=generator)]


@given(matrices(), st.sampled_from([1, 16]))
@settings(max_examples=60)
def test_any_finite_matrix_is_right_bit_for_bit(x: Tensor, tile_rows: int) -> None:
    assert_bit_for_bit(x, tile_rows, values=True)


@given(matrices(), st.sampled_from([1, 16]), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_any_stochastically_rounded_matrix_is_right_bit_for_bit(
    x: Tensor, tile_rows: int, seed: int, stream: int
) -> None:
    assert_bit_for_bit(x, tile_rows, seed, stream)


EDGES = {
    "all zero": torch.zeros(3, 20),
    "minus zero": torch.full((2, 16), -0.0),
    "one smallest subnormal": torch.tensor([[SMALLEST] + [0.0] * 17]),
    "all subnormal": torch.arange(1, 65).view(2, 32) * SMALLEST,
    "largest finite": torch.tensor([[FLT_MAX, -FLT_MAX, FLT_MAX / 2, 1.0] * 5]),
    "one huge outlier": torch.cat([gaussian(4, 48), torch.full((4, 1), 3e38)], 1),
    "largest and smallest": torch.tensor([[FLT_MAX] * 16 + [SMALLEST] * 16]),
    "no rows": torch.zeros(0, 16),
    "no columns": torch.zeros(5, 0),
    "nothing": torch.zeros(0, 0),
    "one row": gaussian(1, 50),
    "one column": gaussian(50, 1),
    "one element": torch.tensor([[-3.0]]),
}


@pytest.mark.parametrize("tile_rows", [1, 16])
@pytest.mark.parametrize("name", EDGES)
def test_edges_are_right_bit_for_bit(name: str, tile_rows: int) -> None:
    assert_bit_for_bit(EDGES[name], tile_rows, values=True)
    assert_bit_for_bit(EDGES[name], tile_rows, seed=11)


def test_zeros_stay_zeros_with_their_signs() -> None:
    x = torch.tensor([[0.0, -0.0] * 8])
    back = dequantize_nvfp4(quantize_nvfp4(x), 1, 16)
    assert (back == 0).all()
    assert torch.equal(back.signbit(), x.signbit())


@pytest.mark.parametrize("amax", [1e-30, 1.0, 12345.678, 1e30, FLT_MAX])
def test_the_largest_magnitude_survives_to_fp32_rounding(amax: float) -> None:
    x = torch.tensor([[1e-3, -1.0, 0.25] + [0.0] * 20]) * amax
    back = dequantize_nvfp4(quantize_nvfp4(x), *x.shape)
    assert back[0, 1].item() == pytest.approx(x[0, 1].item(), rel=2**-22)
    assert back.isfinite().all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("seed", [None, torch.tensor(3)], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("tile_rows", [1, 16])
def test_one_nan_or_inf_poisons_the_whole_tensor(poison: float, seed: Tensor | None, tile_rows: int) -> None:
    x = gaussian(20, 40)
    x[7, 33] = poison
    q = quantize_nvfp4(x, tile_rows=tile_rows, seed=seed)
    assert q.amax.isnan()
    assert (q.codes == 0).all()
    assert (q.scales.view(torch.uint8) == 0).all()
    assert dequantize_nvfp4(q, 20, 40).isnan().all()


@pytest.mark.parametrize("tile_rows", [1, 16])
@pytest.mark.parametrize("seed", [None, torch.tensor(3)], ids=["nearest", "stochastic"])
@pytest.mark.parametrize("cols", [1, 15, 17, 47])
def test_padding_is_with_zeros_and_changes_nothing(cols: int, seed: Tensor | None, tile_rows: int) -> None:
    x = gaussian(19, cols)
    padded = torch.nn.functional.pad(x, (0, -cols % BLOCK))
    q = quantize_nvfp4(x, tile_rows=tile_rows, seed=seed)
    expected = quantize_nvfp4(padded, tile_rows=tile_rows, seed=seed)
    assert all(equal_bits(a, b) for a, b in zip(q, expected, strict=True))
    assert (e2m1.unpack(q.codes)[:, cols:] == 0).all()
    whole = dequantize_nvfp4(q, *padded.shape)
    assert torch.equal(dequantize_nvfp4(q, 19, cols), whole[:, :cols])


def test_16x16_blocks_give_a_weight_and_its_transpose_the_same_codes() -> None:
    w = gaussian(48, 80)
    q, q_transposed = quantize_nvfp4(w, tile_rows=16), quantize_nvfp4(w.t(), tile_rows=16)
    assert torch.equal(e2m1.unpack(q_transposed.codes), e2m1.unpack(q.codes).t())
    assert equal_bits(q_transposed.scales, q.scales.t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_quantised_as_their_fp32_values(dtype: torch.dtype) -> None:
    x = gaussian(8, 64).to(dtype)
    for got, expected in zip(quantize_nvfp4(x), quantize_nvfp4(x.float()), strict=True):
        assert equal_bits(got, expected)


def test_any_memory_layout_is_quantised_alike_into_contiguous_results() -> None:
    x = gaussian(32, 48)
    sliced = torch.zeros(32, 100)[:, 3:51].copy_(x)
    for other in (x.t().contiguous().t(), sliced):
        for got, expected in zip(quantize_nvfp4(other), quantize_nvfp4(x), strict=True):
            assert got.is_contiguous()
            assert equal_bits(got, expected)


@given(matrices(), st.sampled_from([1, 16]))
def test_code_times_block_scale_is_exact_in_bf16(x: Tensor, tile_rows: int) -> None:
    values = block_values(quantize_nvfp4(x, tile_rows=tile_rows), *x.shape)
    assert torch.equal(values.to(torch.bfloat16).to(torch.float32), values)


def test_every_code_with_every_scale_is_exact_in_bf16() -> None:
    scales = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = e2m1.pack(torch.arange(16, dtype=torch.uint8)).expand(127, 8)
    q = Quantized(codes, scales[:, None], torch.tensor(1.0))
    values = block_values(q, 127, 16)
    assert torch.equal(values.to(torch.bfloat16).to(torch.float32), values)
    expected = [[float(m * s) for m in scalar.E2M1] for s in scalar.E4M3]
    assert values[:, :8].tolist() == expected


def test_tensor_scale_is_amax_divided_by_2688_not_times_a_reciprocal() -> None:
    amax = gaussian(1, 4096)[0].abs()
    expected = amax.numpy() / np.float32(2688)
    assert (amax.numpy() * np.float32(1 / 2688) != expected).any()  # else this would tell nothing
    np.testing.assert_array_equal(tensor_scale(amax).numpy(), expected)


def test_random_bits_depend_on_seed_and_stream_and_nothing_else() -> None:
    x = gaussian(16, 64)

    def codes(seed: int, stream: int) -> Tensor:
        return e2m1.unpack(quantize_nvfp4(x, seed=torch.tensor(seed), stream=stream).codes)

    assert torch.equal(codes(1, 0), codes(1, 0))
    for other in (codes(2, 0), codes(1, 1)):
        assert 0.1 < (codes(1, 0) != other).float().mean() < 0.6


def test_the_seed_may_be_of_shape_1_or_scalar() -> None:
    x = gaussian(4, 16)
    assert torch.equal(quantize_nvfp4(x, seed=torch.tensor([9])).codes, quantize_nvfp4(x, seed=torch.tensor(9)).codes)


def test_stochastic_rounding_leaves_the_scales_alone() -> None:
    x = gaussian(16, 64)
    nearest, stochastic = quantize_nvfp4(x), quantize_nvfp4(x, seed=torch.tensor(1))
    assert equal_bits(nearest.scales, stochastic.scales)
    assert not torch.equal(nearest.codes, stochastic.codes)


def test_stochastic_rounding_averages_to_the_value_less_a_512th_of_a_step() -> None:
    row = torch.linspace(-6, 6, 15)  # with a block maximum of 6 nothing clips
    rows = 1 << 14
    x = torch.cat([row, torch.tensor([6.0])]).expand(rows, 16)
    back = dequantize_nvfp4(quantize_nvfp4(x, seed=torch.tensor(1)), rows, 16).to(torch.float64)
    magnitude = x[0].abs()
    step = torch.where(magnitude >= 4, 2.0, torch.where(magnitude >= 2, 1.0, 0.5))
    bound = step / 256 + 5 * step * 0.5 / math.sqrt(rows)  # truncation to 256ths, and five standard errors
    assert ((back.mean(0) - x[0]).abs() <= bound).all()
    assert (back - x).abs().amax() < 2
