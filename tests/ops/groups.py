"""Groups of tokens to test with: offsets, and operands of grouped products."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from spectral_compile.formats import FORMATS

OFFSETS = {"usual": (5, 5, 37, 40), "all of one": (0, 40, 40, 40), "none": (0, 0, 0, 0), "a rest": (0, 3, 20, 33)}
TOKENS, N, K = 40, 48, 64

spectral = torch.ops.spectral


@st.composite
def counts_and_rest(draw: st.DrawFn) -> tuple[list[int], int]:
    """How many tokens each expert has, and how many belong to nobody."""
    return draw(st.lists(st.integers(0, 40), min_size=1, max_size=5)), draw(st.integers(0, 20))


def slices(offsets: tuple[int, ...] | Tensor) -> list[slice]:
    ends = offsets.tolist() if isinstance(offsets, Tensor) else list(offsets)
    return [slice(start, end) for start, end in zip((0, *ends), ends, strict=False)]


def int32(offsets: tuple[int, ...]) -> Tensor:
    return torch.tensor(offsets, dtype=torch.int32)


def quantized(x: Tensor, offsets: Tensor, format: str, axis: int, block: int = 1, hadamard: bool = False) -> tuple:
    """Of tokens [tokens, features]."""
    scale = "" if format == "identity" else FORMATS[format].scales[0]
    return spectral.grouped_quantize(x, None, None, None, offsets, format, scale, axis, 1, hadamard, 0, block)


def grouped(format: str, b_k_last: bool, offsets: tuple[int, ...], left: bool = False, right: bool = False) -> tuple:
    """Arguments of `scaled_grouped_mm`, as fprop has them."""
    ends = int32(offsets)
    a = quantized(torch.randn(TOKENS, K), ends, format, axis=1)
    shape = (len(offsets), N, K) if b_k_last else (len(offsets), K, N)
    scales = torch.arange(1, 1 + len(offsets))[:, None, None] ** 3
    kind = FORMATS[format]
    b = spectral.stack_quantize(torch.randn(shape) * scales, None, format, kind.scales[0], 1, kind.block, False, 0)
    term = torch.randn(TOKENS) if left else None, torch.randn(len(offsets), N) if right else None
    return (*a, *b, ends, *term, TOKENS, N, K, 0, b_k_last, format, format, "bf16", torch.float32)


def ragged(x: Tensor, d: Tensor, format: str, offsets: tuple[int, ...], rank: int = 0, hadamard: bool = False) -> tuple:
    """Arguments of `scaled_grouped_mm`, as wgrad has them."""
    ends, block = int32(offsets), FORMATS[format].block
    a, b = (quantized(y, ends, format, 0, block, hadamard) for y in (d, x))
    experts, m, n = len(offsets), d.shape[1], x.shape[1]
    terms: tuple = (None, None)
    if rank == 1:
        terms = torch.randn(experts, m), torch.randn(experts, n)
    elif rank:
        terms = torch.randn(experts, m, rank), torch.randn(experts, rank, n)
    how = (m, n, 16 if hadamard else 1, block, True, format, format, "bf16", torch.float32)
    return (*a, *b, ends, *terms, *how)
