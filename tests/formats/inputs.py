"""Values to quantise, and the comparison with the scalar implementation."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import FORMATS, Quantized, dequantize, e2m1, quantize
from tests.scalar import quantizer

FLT_MAX = torch.finfo(torch.float32).max
SMALLEST = 2.0**-149

RULES = [(format, rule) for format, kind in FORMATS.items() for rule in kind.scales]
TILES = [(format, tile_rows) for format, kind in FORMATS.items() for tile_rows in (1, kind.block)]
QUANTISERS = [(format, rule, tile_rows) for format, rule in RULES for tile_rows in (1, FORMATS[format].block)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(rows: int, cols: int) -> Tensor:
    return torch.randn(rows, cols, generator=seeded(rows * 1000 + cols))


def few_bits(rows: int, cols: int) -> Tensor:
    """bf16 values with blocks that differ in size: many ties, in scales and in elements."""
    x = gaussian(rows, cols).bfloat16().float() * 0.5
    return (x * 8).round() / 8 * torch.exp2((torch.arange(cols) // 16 % 12).float())


def wide(rows: int, cols: int) -> Tensor:
    """30 binades: scales that are subnormal or 0 in E4M3, and saturated ones."""
    binades = torch.randint(-30, 1, (rows, -(-cols // 16)), generator=seeded(5)).repeat_interleave(16, 1)
    return gaussian(rows, cols) * torch.exp2(binades[:, :cols].float())


def heavy_tailed(rows: int, cols: int) -> Tensor:
    """Gaussian over uniform (the slash distribution): no mean, so outliers of every size."""
    return gaussian(rows, cols) / (torch.rand(rows, cols, generator=seeded(6)) + 2.0**-20)


DISTRIBUTIONS = [gaussian, few_bits, wide, heavy_tailed]

EDGES = {
    "all zero": torch.zeros(3, 40),
    "minus zero": torch.full((2, 32), -0.0),
    "one smallest subnormal": torch.tensor([[SMALLEST] + [0.0] * 37]),
    "all subnormal": torch.arange(1, 65).view(1, 64) * SMALLEST,
    "about the smallest normal": torch.arange(-40, 40).view(2, 40) * SMALLEST + 2.0**-126,
    "largest finite": torch.tensor([[FLT_MAX, -FLT_MAX, FLT_MAX / 2, 1.0] * 9]),
    "one huge outlier": torch.cat([gaussian(4, 48), torch.full((4, 1), 3e38)], 1),
    "largest and smallest": torch.tensor([[FLT_MAX] * 32 + [SMALLEST] * 32]),
    "no rows": torch.zeros(0, 32),
    "no columns": torch.zeros(5, 0),
    "nothing": torch.zeros(0, 0),
    "one row": gaussian(1, 50),
    "one column": gaussian(50, 1),
    "one element": torch.tensor([[-3.0]]),
}

ANY_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
SIZES = st.one_of(ANY_FLOAT, st.sampled_from([0.0, -0.0, SMALLEST, -SMALLEST, FLT_MAX, -FLT_MAX, 2.0**-126, 6.0]))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Up to 20 x 70, of a few values drawn from all that fp32 has, or of neighbouring magnitudes."""
    rows, cols = draw(st.integers(0, 20)), draw(st.integers(0, 70))
    return _of(draw, (rows, cols))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of one to four dimensions, values as in `matrices`."""
    return _of(draw, tuple(draw(st.lists(st.integers(0, 18), min_size=1, max_size=4))))


def assert_golden(
    x: Tensor,
    format: str,
    rule: str | None = None,
    tile_rows: int = 1,
    *,
    hadamard: bool = False,
    seed: int | None = None,
    stream: int = 0,
    values: bool = False,
) -> None:
    """Codes and scales (and dequantised values) of a finite matrix are the scalar implementation's."""
    seed_tensor = None if seed is None else torch.tensor(seed)
    q = quantize(x, format, scale=rule, tile_rows=tile_rows, hadamard=hadamard, seed=seed_tensor, stream=stream)
    expected = quantizer.quantize(x.float().numpy(), format, rule, tile_rows, hadamard, seed, stream)
    assert [t.dtype for t in q] == [torch.uint8, FORMATS[format].scale_dtype, torch.float32]
    assert q.tensor_scale.item() == float(expected.tensor_scale)
    np.testing.assert_array_equal(scale_bytes(q).numpy(), expected.scales)
    np.testing.assert_array_equal(codes_of(q).numpy(), expected.codes)
    if values:
        got = dequantize(q, format, x.shape[1])
        wanted = quantizer.dequantize(expected, format, tile_rows)[:, : x.shape[1]]
        np.testing.assert_array_equal(got.contiguous().numpy().view(np.int32), wanted.view(np.int32))  # -0 is not 0


def codes_of(q: Quantized) -> Tensor:
    """One a byte."""
    return e2m1.unpack(q.codes)


def scale_bytes(q: Quantized) -> Tensor:
    return q.scales.view(torch.uint8)


def _of(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    pool = draw(st.one_of(st.lists(SIZES, min_size=1, max_size=8), st.lists(st.floats(-8, 8, width=32), min_size=1)))
    generator = seeded(draw(st.integers(0, 100)))
    return torch.tensor(pool)[torch.randint(0, len(pool), shape, generator=generator)]
