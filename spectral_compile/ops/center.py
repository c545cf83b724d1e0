"""spectral::center: an operand less its mean."""

import torch
from torch import Tensor

from spectral_compile.ops.library import declare


def center(x: Tensor, mean: Tensor, rows: Tensor | None) -> Tensor:
    """x [tokens, features] - rows [tokens] (outer) mean [features], contiguous fp32; rows absent means ones.

    rows holds 0 or 1, so the product with the mean is exact.
    """
    shift = mean if rows is None else rows[:, None] * mean
    return (x.to(torch.float32) - shift).contiguous()


def _fake(x: Tensor, mean: Tensor, rows: Tensor | None) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


declare("center(Tensor x, Tensor mean, Tensor? rows) -> Tensor", reference=center, fake=_fake)
