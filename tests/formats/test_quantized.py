"""What the formats share: axes, tiles, padding, layouts, dtypes, and what there is no quantiser for."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import FORMATS, Quantized, dequantize, nvfp4, quantize
from spectral_compile.formats.blocks import block_amax, from_blocks, to_blocks
from spectral_compile.formats.quantized import block_values
from tests.fake_kernels import equal_bits
from tests.formats.inputs import QUANTISERS, TILES, codes_of, few_bits, gaussian, scale_bytes, tensors

SEEDS = pytest.mark.parametrize("seed", [None, torch.tensor(3)], ids=["nearest", "stochastic"])


def assert_equal(got: Quantized, expected: Quantized) -> None:
    assert all(equal_bits(a, b) for a, b in zip(got, expected, strict=True))


@given(tensors(), st.sampled_from(QUANTISERS), st.booleans(), st.data())
@settings(max_examples=200)
def test_a_tensor_along_any_axis_is_a_matrix_along_its_rows(
    x: Tensor, quantiser: tuple[str, str, int], hadamard: bool, data: st.DataObject
) -> None:
    """The definition: that axis last, rows padded to whole tiles in each matrix, all matrices below each other."""
    format, rule, tile_rows = quantiser
    axis = data.draw(st.integers(-x.dim(), x.dim() - 1))
    may_draw = tile_rows == 1 and rule != "four_six"  # padded rows would take random bytes
    seed = data.draw(st.sampled_from([None, torch.tensor(9)])) if may_draw else None
    options = {"scale": rule, "tile_rows": tile_rows, "hadamard": hadamard, "seed": seed, "stream": 4}
    q = quantize(x, format, axis=axis, **options)

    stored = x.movedim(axis, -1)
    *batch, rows, size = stored.shape if x.dim() > 1 else (1, *stored.shape)
    tiles = -(-rows // tile_rows)
    matrix = F.pad(stored.reshape(*batch, rows, size), (0, 0, 0, -rows % tile_rows)).flatten(0, -2)
    expected = quantize(matrix, format, **options)

    def rows_of(stacked: Tensor, height: int, kept: int) -> Tensor:
        each = stacked.reshape(*batch, height, stacked.shape[-1])[..., :kept, :]
        return each if x.dim() > 1 else each[0]

    assert all(t.is_contiguous() for t in q)
    assert equal_bits(q.codes, rows_of(expected.codes, tiles * tile_rows, rows))
    assert torch.equal(scale_bytes(q), rows_of(scale_bytes(expected), tiles, tiles))
    assert equal_bits(q.tensor_scale, expected.tensor_scale)
    back = dequantize(q, format, size, axis)
    assert back.shape == x.shape
    assert equal_bits(back.movedim(axis, -1), rows_of(dequantize(expected, format, size), tiles * tile_rows, rows))


@pytest.mark.parametrize(("format", "tile_rows"), TILES)
@pytest.mark.parametrize("shape", [(2, 33, 50), (2, 3, 18, 20), (33, 50), (70,)], ids=str)
def test_dequantised_values_stay_where_they_were(shape: tuple[int, ...], format: str, tile_rows: int) -> None:
    """Within half the largest step of their block, or clipped by one and a third (floor's 8 to 6)."""
    x = gaussian(1, torch.Size(shape).numel()).view(shape)
    for axis in range(-len(shape), len(shape)):
        back = dequantize(quantize(x, format, axis=axis, tile_rows=tile_rows), format, shape[axis], axis)
        assert (back - x).abs().max() <= x.abs().max() / 4
        assert (back - x).abs().mean() < 0.15


def test_only_a_tensor_of_one_dimension_has_scales_of_one() -> None:
    assert [t.shape for t in quantize(gaussian(1, 20)[0])] == [(16,), (2,), ()]
    assert [t.shape for t in quantize(gaussian(1, 20))] == [(1, 16), (1, 2), ()]
    assert [t.shape for t in quantize(gaussian(20, 60), "mxfp4", tile_rows=32)] == [(20, 32), (1, 2), ()]
    assert [t.shape for t in quantize(torch.zeros(2, 20, 60), "mxfp4", tile_rows=32)] == [(2, 20, 32), (2, 1, 2), ()]


@pytest.mark.parametrize(("format", "tile_rows"), TILES)
@pytest.mark.parametrize("shape", [(0,), (0, 20), (20, 0), (2, 0, 3), (0, 3, 3), (3, 3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("hadamard", [False, True])
def test_empty_tensors_have_no_codes_and_come_back_empty(
    shape: tuple[int, ...], format: str, tile_rows: int, hadamard: bool
) -> None:
    for axis in range(len(shape)):
        for seed in (None, torch.tensor(1)):
            q = quantize(torch.zeros(shape), format, axis=axis, tile_rows=tile_rows, hadamard=hadamard, seed=seed)
            assert q.codes.numel() == 0
            assert q.tensor_scale == (nvfp4.tensor_scale(torch.zeros(())) if format == "nvfp4" else 1)
            assert dequantize(q, format, shape[axis], axis).shape == shape


@pytest.mark.parametrize(("format", "tile_rows"), TILES)
@SEEDS
@pytest.mark.parametrize("cols", [1, 15, 17, 31, 47, 79])
def test_padding_is_with_zeros_and_changes_nothing(cols: int, seed: Tensor | None, format: str, tile_rows: int) -> None:
    block = FORMATS[format].block
    x = gaussian(19, cols)
    padded = F.pad(x, (0, -cols % block))
    q = quantize(x, format, tile_rows=tile_rows, seed=seed)
    assert_equal(q, quantize(padded, format, tile_rows=tile_rows, seed=seed))
    assert (codes_of(q)[:, cols:] == 0).all()
    whole = dequantize(q, format, padded.shape[1])
    assert torch.equal(dequantize(q, format, cols), whole[:, :cols])
    assert (whole[:, cols:] == 0).all()
    if seed is None:
        taller = quantize(F.pad(x, (0, 0, 0, block - 19 % block)), format, tile_rows=tile_rows)
        assert torch.equal(taller.codes[:19], q.codes)
        assert torch.equal(scale_bytes(taller)[: q.scales.shape[0]], scale_bytes(q))


@pytest.mark.parametrize("format", FORMATS)
def test_square_blocks_give_a_weight_and_its_transpose_the_same_codes(format: str) -> None:
    """For every rule whose scale is a function of the block's maximum; four_six sums errors in an order of its own."""
    w, block = few_bits(96, 160), FORMATS[format].block
    for rule in FORMATS[format].scales:
        if rule != "four_six":
            q = quantize(w, format, scale=rule, tile_rows=block)
            q_transposed = quantize(w.t(), format, scale=rule, tile_rows=block)
            assert torch.equal(codes_of(q_transposed), codes_of(q).t())
            assert equal_bits(q_transposed.scales, q.scales.t())
            assert_equal(q_transposed, quantize(w, format, scale=rule, axis=0, tile_rows=block))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_of_other_types_are_quantised_as_their_fp32_values(dtype: torch.dtype, format: str) -> None:
    x = gaussian(8, 64).to(dtype)
    for hadamard in (False, True):
        assert_equal(quantize(x, format, hadamard=hadamard), quantize(x.float(), format, hadamard=hadamard))


@pytest.mark.parametrize("format", FORMATS)
@SEEDS
def test_any_memory_layout_is_quantised_alike_into_contiguous_results(seed: Tensor | None, format: str) -> None:
    x = gaussian(32, 48)
    x[:] = x[:1]
    x[:, 7] = 2.5
    strided = torch.zeros(64, 100)[::2, 3:99:2].copy_(x)
    for other in (x.t().contiguous().t(), strided, x[:1].expand(32, 48)):
        assert other.stride() != x.stride()
        for hadamard in (False, True):
            q = quantize(other, format, hadamard=hadamard, seed=seed)
            assert all(t.is_contiguous() for t in q)
            assert_equal(q, quantize(x, format, hadamard=hadamard, seed=seed))


def test_the_input_is_not_written_to() -> None:
    x = gaussian(16, 32)
    x[3, 3] = torch.inf
    before = x.clone()
    for format in FORMATS:
        quantize(x, format)
    assert torch.equal(x, before)


@given(tensors(), st.sampled_from(TILES))
def test_blocks_come_apart_and_back_together(x: Tensor, tile: tuple[str, int]) -> None:
    x = x if x.dim() > 1 else x[None]
    block, tile_rows = FORMATS[tile[0]].block, tile[1]
    blocks = to_blocks(x, block, tile_rows)
    assert blocks.shape[-1] == block
    assert blocks.shape[-3] == tile_rows
    assert equal_bits(from_blocks(blocks, x.shape[-2])[..., : x.shape[-1]], x)
    if x.numel():
        assert block_amax(blocks).max() == x.abs().max()
    for tile_, row, b, col in ((0, 0, 0, 0), (-1, tile_rows - 1, -1, block - 1)):
        i, j = tile_ % max(1, blocks.shape[-4]) * tile_rows + row, b % max(1, blocks.shape[-2]) * block + col
        if i < x.shape[-2] and j < x.shape[-1]:
            assert torch.equal(blocks[..., tile_, row, b, col], x[..., i, j])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "nvfp8"}, ["'nvfp8'", "nvfp4, mxfp4"]),
        ({"scale": "floor"}, ["nvfp4", "'floor'", "amax, headroom, four_six"]),
        ({"format": "mxfp4", "scale": "amax"}, ["mxfp4", "'amax'", "floor, ceil, rceil, even"]),
        ({"tile_rows": 32}, ["nvfp4", "1 or 16 rows", "32"]),
        ({"tile_rows": 0}, ["1 or 16 rows"]),
        ({"format": "mxfp4", "tile_rows": 16}, ["mxfp4", "1 or 32 rows", "16"]),
        ({"scale": "four_six", "seed": torch.tensor(1)}, ["'four_six'", "stochastic"]),
    ],
    ids=str,
)
def test_what_there_is_no_quantiser_for_is_refused_by_name(arguments: dict[str, object], says: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # its words are checked below
        quantize(torch.zeros(16, 16), **arguments)  # type: ignore[arg-type]
    for words in says:
        assert words in str(refusal.value)


def test_a_scalar_has_no_axis() -> None:
    with pytest.raises(ValueError, match="no axis"):
        quantize(torch.tensor(3.0))


def test_an_unknown_format_is_not_dequantised_either() -> None:
    q = quantize(torch.zeros(16, 16))
    for refused in (
        lambda: dequantize(q, "nvfp8", 16),
        lambda: block_values(q, "nvfp8"),
    ):
        with pytest.raises(ValueError, match="nvfp4, mxfp4"):
            refused()


def test_a_size_that_the_codes_do_not_have_is_refused() -> None:
    q = quantize(torch.randn(3, 64))
    with pytest.raises(ValueError, match="the codes are of at most 64 elements along the block axis, not 1000"):
        dequantize(q, "nvfp4", 1000)


@pytest.mark.parametrize("seed", [torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor(1, dtype=torch.int32)])
def test_a_seed_is_one_int64(seed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a seed is one int64 element, not"):
        quantize(torch.randn(2, 16), seed=seed)


@pytest.mark.parametrize("stream", [-1, 2**32])
def test_a_stream_is_a_32_bit_number(stream: int) -> None:
    with pytest.raises(ValueError, match="a stream is a number from 0 to"):
        quantize(torch.randn(2, 16), seed=torch.tensor(1), stream=stream)
