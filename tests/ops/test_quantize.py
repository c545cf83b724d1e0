"""spectral::quantize: what it hands to the format, and what its fake kernel promises."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spectral_compile import formats
from spectral_compile.formats.hadamard import hadamard as hadamard_transform
from spectral_compile.ops.center import center
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes, equal_bits
from tests.ops.operands import EVERY_FORMAT, QUANTISERS, all_equal, arguments, quantized, square

op = torch.ops.spectral.quantize.default
SEED = torch.tensor(5)
AXES = pytest.mark.parametrize("axis", [0, 1])
HADAMARD = pytest.mark.parametrize("hadamard", [False, True], ids=["plain", "hadamard"])


@AXES
@HADAMARD
@pytest.mark.parametrize(("format", "scale", "tile_rows"), QUANTISERS[:-1])
def test_blocks_run_along_the_axis_and_are_stored_along_rows(
    format: str, scale: str, tile_rows: int, hadamard: bool, axis: int
) -> None:
    x = torch.randn(33, 50)
    for seed in (None, SEED) if scale != "four_six" else (None,):
        options = {"scale": scale, "tile_rows": tile_rows, "hadamard": hadamard, "seed": seed, "stream": 3}
        expected = formats.quantize(x if axis == 1 else x.t(), format, **options)
        assert all_equal(quantized(x, format, axis=axis, **options), expected)
        assert all_equal(op(*arguments(x, format, axis=axis, **options)), expected)


@AXES
@HADAMARD
@pytest.mark.parametrize("with_rows", [True, False])
@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_a_mean_is_taken_out_in_fp32_before_anything_else(
    axis: int, with_rows: bool, format: str, hadamard: bool
) -> None:
    x, mean = torch.randn(20, 40).bfloat16() + 9, torch.randn(40) + 9
    rows = (torch.arange(20) % 3 > 0).float() if with_rows else None
    centred = center(x, mean, rows)
    assert centred.dtype == torch.float32
    got = quantized(x, format, mean=mean, rows=rows, axis=axis, hadamard=hadamard)
    assert all_equal(got, quantized(centred, format, axis=axis, hadamard=hadamard))
    assert not equal_bits(got[0], quantized(x, format, axis=axis, hadamard=hadamard)[0])


@AXES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_identity_stores_the_values_themselves(dtype: torch.dtype, axis: int) -> None:
    x = torch.randn(6, 10).to(dtype)
    codes, scales, tensor_scale = quantized(x, "identity", axis=axis, seed=SEED)
    assert equal_bits(codes, x if axis == 1 else x.t())
    assert codes.data_ptr() != x.data_ptr()
    assert scales.numel() == 0
    assert tensor_scale.item() == 1


@AXES
def test_identity_stores_transformed_values_unrounded(axis: int) -> None:
    x = torch.randn(6, 10).bfloat16()
    codes, _, _ = quantized(x, "identity", axis=axis, hadamard=True)
    transformed = hadamard_transform(x, axis)
    assert codes.dtype == torch.float32
    assert equal_bits(codes, transformed if axis == 1 else transformed.t())


@pytest.mark.parametrize("mean", [float("nan"), float("inf")])
def test_a_poisoned_mean_poisons_the_operand(mean: float) -> None:
    x, mean_ = torch.randn(4, 16), torch.full((16,), mean)
    assert quantized(x, mean=mean_)[2].isnan()
    assert quantized(x, "mxfp4", mean=mean_)[1].float().isnan().all()


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"format": "nvfp8"}, ["'nvfp8'", "nvfp4, mxfp4, identity"]),
        ({"scale": "rceil"}, ["'rceil'", "amax, headroom, four_six"]),
        ({"format": "mxfp4", "scale": "headroom"}, ["'headroom'", "floor, ceil, rceil, even"]),
        ({"tile_rows": 32}, ["1 or 16", "32"]),
        ({"format": "mxfp4", "tile_rows": 16}, ["1 or 32", "16"]),
        ({"axis": 2}, ["axis 0 or 1", "2"]),
        ({"axis": -1}, ["axis 0 or 1", "-1"]),
        ({"format": "identity", "axis": 3}, ["axis 0 or 1", "3"]),
        ({"scale": "four_six", "seed": SEED}, ["'four_six'", "stochastic"]),
    ],
    ids=str,
)
def test_what_there_is_no_quantiser_for_is_refused_at_run_and_at_trace_time(
    choices: dict[str, object], says: list[str]
) -> None:
    for x in (torch.zeros(16, 16), torch.zeros(16, 16, device="meta")):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011  # its words are checked below
            op(*arguments(x, **choices))
        for words in says:
            assert words in str(refusal.value)


@AXES
@HADAMARD
@pytest.mark.parametrize(("format", "scale", "tile_rows"), QUANTISERS)
def test_the_fake_kernel_agrees(format: str, scale: str, tile_rows: int, hadamard: bool, axis: int) -> None:
    """For any layout, as Inductor hands them over: rows, columns, or every other element."""
    choices = {"format": format, "scale": scale, "tile_rows": tile_rows, "hadamard": hadamard, "axis": axis}
    for shape in ((17, 35), (1, 16), (40, 1), (0, 16), (3, 0)):
        assert_fake_agrees(op, *arguments(torch.randn(shape), **choices))
    strided = torch.randn(34, 70)[::2, ::2]
    for x in (torch.randn(32, 64).t(), strided.bfloat16(), strided):
        assert_fake_agrees(op, *arguments(x, **choices))
    mean, rows = torch.randn(35), torch.ones(17)
    seed = None if scale == "four_six" else SEED
    assert_fake_agrees(op, *arguments(strided, mean=mean, rows=rows, seed=seed, **choices))
    assert_fake_agrees(op, *arguments(strided.half(), mean=mean, seed=seed, **choices))


@AXES
@HADAMARD
@pytest.mark.parametrize(("format", "scale", "tile_rows"), QUANTISERS)
def test_one_trace_serves_all_sizes(format: str, scale: str, tile_rows: int, hadamard: bool, axis: int) -> None:
    def quantise(x: Tensor) -> tuple[Tensor, ...]:
        results = op(*arguments(x, format, scale, tile_rows, hadamard=hadamard, axis=axis))
        return results[:1] if format == "identity" else results[:2]

    assert_one_trace_serves_all_sizes(quantise, (torch.randn(40, 70),), (torch.randn(35, 96),))


@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_opcheck(format: str) -> None:
    x, mean, rows = torch.randn(20, 40), torch.randn(40), torch.ones(20)
    opcheck(op, arguments(x, format, tile_rows=square(format), axis=0))
    opcheck(op, arguments(x, format, mean=mean, rows=rows, seed=SEED, hadamard=True))
