"""Quantise kernels on a real GPU against the references: the interpreted tests' comparisons over larger shapes."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.ops.quantize import quantize as reference
from spectral_compile.ops.quantize_pair import quantize_pair as reference_pair
from spectral_compile.ops.round import amax as reference_amax
from spectral_compile.ops.round import carry
from tests.lowering.matrices import RULES, laid_out, same_bits, same_but_nans_bits, values
from tests.lowering.triton.cases import DTYPES, Side, matrices, sides, square

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

SIZES = (0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 129, 300, 1000)
GPU_SETTINGS = settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    """The kernels behind the operators."""
    pytest.importorskip("triton")
    from spectral_compile.lowering.triton import quantizers

    quantizers.register()


def on_gpu(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator's results, computed on the GPU from arguments that are moved there with their strides."""
    moved = pytree.tree_map_only(Tensor, moved_with_strides, arguments)
    results = getattr(torch.ops.spectral, name)(*moved)
    results = (results,) if isinstance(results, Tensor) else results
    return tuple(result.cpu() for result in results)


def moved_with_strides(x: Tensor) -> Tensor:
    """A copy of x's whole memory, and the same view of it."""
    storage = x.new_empty(0).set_(x.untyped_storage()).cuda()
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


def assert_pair_as_reference(x: Tensor, row: Side, col: Side) -> None:
    arguments = (x, *row.in_pair(), *col.in_pair())
    for i, (a, b) in enumerate(zip(on_gpu("quantize_pair", *arguments), reference_pair(*arguments), strict=True)):
        assert same_bits(a, b), i


def assert_as_reference(x: Tensor, side: Side, axis: int) -> None:
    arguments = side.arguments(x, axis)
    for name, a, b in zip(
        ("codes", "scales", "scale"), on_gpu("quantize", *arguments), reference(*arguments), strict=True
    ):
        assert same_bits(a, b), name


@GPU_SETTINGS
@given(st.data())
def test_every_bit_of_a_pair_is_the_references(data: st.DataObject) -> None:
    x = data.draw(matrices(SIZES))
    assert_pair_as_reference(x, data.draw(sides(x)), data.draw(sides(x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("format", "scale"), RULES)
def test_every_rule(format: str, scale: str, axis: int, dtype: torch.dtype) -> None:
    x = values(1040, 2064, "outliers" if dtype != torch.float16 else "gaussian", dtype, torch.default_generator)
    mean, rows = torch.randn(2064), (torch.arange(1040) % 4 > 0).float()
    seeds = [None] if scale == "four_six" else [None, torch.tensor([2**40 + 3])]
    for tile_rows in (1, square(format)):
        for hadamard in (False, True):
            for seed in seeds:
                side = Side(mean, rows, seed, format, scale, tile_rows, hadamard, stream=2**32 - 1)
                assert_as_reference(x, side, axis)
                assert_as_reference(laid_out(x, "transposed"), replace(side, mean=None, rows=None), axis)


@pytest.mark.parametrize("seed", [None, torch.tensor([5])])
@pytest.mark.parametrize("format", FORMATS)
def test_every_bf16_magnitude_is_rounded_as_the_reference_does(format: str, seed: Tensor | None) -> None:
    finite = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)
    both = torch.cat([finite, -finite])
    for exponent in (-126, -14, 0, 127):
        x = torch.where(both.abs() <= 2.0**exponent, both, 0).view(-1, 96)
        assert_pair_as_reference(x, Side(seed=seed, format=format, stream=3), Side(seed=seed, format=format))


@pytest.mark.parametrize("poison", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_are_never_silent(dtype: torch.dtype, format: str, poison: float) -> None:
    x = torch.randn(300, 300).to(dtype)
    x[140, 140] = poison
    for variant in ({}, {"hadamard": True, "seed": torch.tensor([1])}, {"tile_rows": square(format)}):
        assert_pair_as_reference(x, Side(format=format, **variant), Side(format=format))


def test_more_elements_than_an_int32_counts() -> None:
    """Offsets beyond 2**31: the last rows are those of a small matrix."""
    free = torch.cuda.mem_get_info()[0]
    rows, cols = 2**17 + 70, 2**14 + 64
    if free < 12 * rows * cols // 4:
        pytest.skip("not enough memory")
    x = torch.zeros(rows, cols, dtype=torch.bfloat16, device="cuda")
    tail = torch.randn(70, cols).bfloat16()
    x[-70:] = tail.cuda()
    codes, scales, _ = torch.ops.spectral.quantize(x, None, None, None, "mxfp4", "floor", 1, 1, False, 0)
    expected = reference(tail, None, None, None, "mxfp4", "floor", 1, 1, False, 0)
    assert same_bits(codes[-70:].cpu(), expected[0])
    assert same_bits(scales[-70:].cpu(), expected[1])
    codes, *_ = torch.ops.spectral.quantize(x, None, None, torch.tensor(3).cuda(), "mxfp4", "floor", 0, 1, False, 0)
    assert not codes[:, : 2**16 - 32].any()  # zeros, whose random bits have other numbers
    assert codes[:, -35:].any()


@GPU_SETTINGS
@given(st.data())
def test_amax(data: st.DataObject) -> None:
    x = data.draw(matrices(SIZES))
    side = data.draw(sides(x))
    for mean, rows in {(None, None), (side.mean, None), (side.mean, side.rows)}:
        assert same_bits(*on_gpu("amax", x, mean, rows), reference_amax(x, mean, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "empty"), [((1, 1), 0.0), ((65, 130), 0.4), ((5000, 1000), 0.1), ((40, 33), 1.0)])
def test_means(shape: tuple[int, int], empty: float, dtype: torch.dtype) -> None:
    x = torch.randn(shape) + 3
    x[torch.rand(shape[0]) < empty] *= -0.0
    for laid in (x.to(dtype), laid_out(x.to(dtype), "transposed")):
        exact = laid.double().sum(0)
        bound = 2.0**-24 * 260 * laid.double().abs().sum(0) + 1e-44
        mean, largest = on_gpu("token_mean_amax", laid, 1)
        assert bool(((mean - exact / shape[0]).abs() <= bound / shape[0]).all())
        assert same_bits(mean, *on_gpu("token_mean", laid, 1))
        assert same_bits(largest, reference_amax(laid, mean, None))
        mean, rows, total, common, largest, largest_common = on_gpu("token_mean_nonzero_amax", laid, 2)
        assert same_bits(rows, (laid != 0).any(1).float())
        assert bool(((total - exact).abs() <= bound).all())
        for a, b in zip((mean, rows, total, common), on_gpu("token_mean_nonzero", laid, 2), strict=True):
            assert same_bits(a, b)
        assert same_bits(largest, reference_amax(laid, mean, rows))
        assert same_bits(largest_common, reference_amax(laid, common, None))


def test_the_same_bits_on_every_run() -> None:
    x = torch.randn(4000, 3000)
    first = on_gpu("token_mean_nonzero_amax", x, 2)
    for _ in range(5):
        assert all(same_bits(a, b) for a, b in zip(on_gpu("token_mean_nonzero_amax", x, 2), first, strict=True))


@pytest.mark.parametrize("square_blocks", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_codes_back_to_values(format: str, square_blocks: bool) -> None:
    x = values(450, 1000, "outliers", torch.float32, torch.default_generator)
    side = Side(format=format, tile_rows=square(format) if square_blocks else 1)
    codes, scales, _ = reference(*side.arguments(x, 1))
    for dtype in (torch.bfloat16, torch.float32):
        arguments = (codes, scales, format, 450, 1000, dtype)
        assert same_but_nans_bits(*on_gpu("carry", *arguments), carry(*arguments))


def test_a_cuda_graph_holds_it_and_reads_a_new_seed() -> None:
    """No host synchronisation: capture would refuse it."""
    x, seed = torch.randn(256, 512).bfloat16(), torch.tensor(3)
    on_device, seed_on_device = x.cuda(), seed.cuda()

    def step() -> tuple[Tensor, ...]:
        mean, rows, _, common, largest, _ = torch.ops.spectral.token_mean_nonzero_amax(on_device, 2)
        row = (mean, rows, seed_on_device, "nvfp4", "amax", 1, False, 1, largest)
        col = (common, None, seed_on_device, "nvfp4", "amax", 1, True, 2, None)
        return (mean, common, *torch.ops.spectral.quantize_pair(on_device, *row, *col))

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for value in (3, 2**40 + 1):
        seed_on_device.fill_(value)
        graph.replay()
        mean, common, *got = (result.cpu() for result in results)
        how = {"seed": torch.tensor(value)}
        row = Side(mean, torch.ones(256), stream=1, **how)
        expected = reference_pair(x, *row.in_pair(), *Side(common, hadamard=True, stream=2, **how).in_pair())
        for a, b in zip(got, expected, strict=True):
            assert same_bits(a, b)
