"""Quantisers and operands on which GPU kernels are compared with the references: interpreted, or on a GPU."""

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from tests.lowering.matrices import RULES, laid_out, values

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("plain", "transposed", "padded rows", "padded columns", "every other", "offset", "expanded")
KINDS = ("gaussian", "outliers", "edges", "subnormal", "ties", "zeros")


@dataclass(frozen=True)
class Side:
    """One quantisation of a matrix: what `spectral::quantize` takes of it."""

    mean: Tensor | None = None
    rows: Tensor | None = None
    seed: Tensor | None = None
    format: str = "nvfp4"
    scale: str | None = None
    tile_rows: int = 1
    hadamard: bool = False
    stream: int = 0
    amax: Tensor | None = None

    def arguments(self, x: Tensor, axis: int) -> tuple[Any, ...]:
        """Of `spectral::quantize`."""
        scale = self.scale or FORMATS[self.format].scales[0]
        how = (self.format, scale, axis, self.tile_rows, self.hadamard, self.stream)
        return (x, self.mean, self.rows, self.seed, *how, self.amax)

    def in_pair(self) -> tuple[Any, ...]:
        """Of `spectral::quantize_pair`."""
        scale = self.scale or FORMATS[self.format].scales[0]
        how = (self.format, scale, self.tile_rows, self.hadamard, self.stream)
        return (self.mean, self.rows, self.seed, *how, self.amax)


def square(format: str) -> int:
    return FORMATS[format].block


@st.composite
def matrices(draw: st.DrawFn, sizes: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, cols = draw(st.sampled_from(sizes)), draw(st.sampled_from(sizes))
    x = values(rows, cols, draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES)), generator)
    return laid_out(x, draw(st.sampled_from(LAYOUTS)))


@st.composite
def sides(draw: st.DrawFn, x: Tensor) -> Side:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, cols = x.shape
    mean = torch.randn(cols, generator=generator) * (x.float().abs().max() if x.numel() else 1)
    # Only 0 and 1 are promised; with others a fused multiply-add would show.
    weights = draw(st.sampled_from([None, (0.0, 1.0), (0.3, 1 / 3)]))
    counting = None if weights is None else torch.tensor(weights)[torch.arange(rows) * 7 % 3 % 2]
    centred = draw(st.booleans())
    format, scale = draw(st.sampled_from(RULES))
    seed = None if scale == "four_six" else draw(st.none() | st.integers(-(2**63), 2**63 - 1))
    return Side(
        mean=mean if centred else None,
        rows=counting if centred else None,
        seed=None if seed is None else torch.tensor([seed]),
        format=format,
        scale=scale,
        tile_rows=draw(st.sampled_from([1, square(format)])),
        hadamard=draw(st.booleans()),
        stream=draw(st.sampled_from([0, 1, 12345, 2**31, 2**32 - 1])),
    )
