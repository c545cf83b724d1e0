"""spectral::split_mm: a product whose low-rank part is computed apart."""

import torch
from torch import Tensor

from spectral_compile.ops.library import declare


def split_mm(a: Tensor, b: Tensor, left: Tensor | None, right: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """a [M, K] @ b [K, N] + left (outer) right, accumulated in fp32, in out_dtype.

    left [M] and right [N] are vectors, or matrices [M, R] and [R, N] for a term of rank R; left absent means ones.
    Where a = X - left (outer) mean and right = mean @ b, the result is X @ b again: what was split off `a` so that it
    fits a narrow format comes back in high precision. A bias is a right vector too.
    """
    return add_low_rank(a.to(torch.float32) @ b.to(torch.float32), left, right).to(out_dtype)


def add_low_rank(product: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """product [M, N] + left (outer) right; ones for left where it is absent, nothing where right is."""
    if right is None:
        return product
    if right.dim() == 1:
        return product + (right if left is None else left[:, None] * right)
    assert left is not None
    return product + left @ right


def _fake(a: Tensor, b: Tensor, left: Tensor | None, right: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)


declare(
    "split_mm(Tensor a, Tensor b, Tensor? left, Tensor? right, ScalarType out_dtype) -> Tensor",
    reference=split_mm,
    fake=_fake,
)
