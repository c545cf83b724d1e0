"""Matrices of all kinds and layouts, for kernels that are compared with their references bit by bit."""

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS

LARGEST = {torch.bfloat16: 3.3895e38, torch.float16: 65504.0, torch.float32: 3.4028235e38}
EDGES = (0.0, -0.0, 1e-45, -1e-45, 1e-39, 1.2e-38, 1e-30, 6e-8, 1e-5, -1e-5, 0.25, 1.0, -6.0, 448.0, 3e4)
RULES = [(name, rule) for name, kind in FORMATS.items() for rule in kind.scales]


def values(rows: int, cols: int, kind: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A matrix [rows, cols] of one kind of numbers."""
    x = torch.randn(rows, cols, generator=generator)
    if kind == "outliers":
        x *= torch.exp(4 * torch.randn(rows, cols, generator=generator))
    elif kind == "edges":
        pool = torch.tensor([*EDGES, LARGEST[dtype], -LARGEST[dtype] / 3, float("nan")])
        # Mostly small ones: the largest value sets the scale of all others.
        index = torch.randint(len(pool) - 3, (rows, cols), generator=generator)
        rare = torch.rand(rows, cols, generator=generator) < 0.001
        x = pool[torch.where(rare, torch.randint(len(pool), (rows, cols), generator=generator), index)]
    elif kind == "subnormal":
        x *= 1e-40 if dtype != torch.float16 else 1e-6
    elif kind == "ties":  # a largest value of 6 makes every scale 1 and these the values that are rounded
        x = (x * 4).round().clamp(-24, 24) / 4
        x[:, ::16] = 6
    elif kind == "zeros":
        x = torch.where(x > 1, x, 0.0 * x)
    return x.to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    rows, cols = x.shape
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "padded rows":
        return torch.cat([x, x[:, :3]], 1)[:, :cols]
    if layout == "padded columns":
        return torch.cat([x, x[:5]], 0).t().contiguous().t()[:rows]
    if layout == "every other":
        return x.repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    if layout == "offset":
        return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(rows, cols) if x.numel() else x
    if layout == "expanded":
        return x[:1].expand(rows, cols)
    return x


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and every bit."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(whole), b.view(whole))


def same_but_nans_bits(a: Tensor, b: Tensor) -> bool:
    """As `same_bits`, where any NaN is like any other: 0 * NaN has no sign of its own."""
    there = ~a.isnan()
    return torch.equal(a.isnan(), b.isnan()) and same_bits(a[there], b[there])


def along(axis: int, blocks: Tensor) -> Tensor:
    """A matrix, its rows contiguous, that has the rows of `blocks` along `axis`: each direction has its own kernel."""
    return blocks if axis == 1 else blocks.t().contiguous()
