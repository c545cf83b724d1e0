"""spectral::token_mean and spectral::token_mean_nonzero: the row vector that mean removal takes out.

The source is Averis ("The Curse and Blessing of Mean Bias in FP4-Quantized LLM Training"), with two guards of our own.
With `_amax` they also say what `spectral::amax` would of the operand less its mean: `lowering/cpu` puts those in their
place, where one read of the operand gives both.
"""

import torch
from torch import Tensor

from spectral_compile.ops.library import declare
from spectral_compile.ops.round import amax


def token_mean(x: Tensor, min_rows: int) -> Tensor:
    """The mean over tokens [features], fp32, of x [tokens, features].

    Zero below `min_rows` tokens: with one token the mean *is* the operand, and the product would silently be in high
    precision. Decided at run time, so one graph serves every batch size.
    """
    if x.shape[0] < min_rows:
        return x.new_zeros(x.shape[1], dtype=torch.float32)
    return x.to(torch.float32).sum(0) / x.shape[0]


def token_mean_nonzero(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean over rows that are not all zero, which rows those are, the sum, and a mean that can be taken from every
    row alike: [features], [tokens], [features], [features], fp32.

    For gradients: tokens that do not count in the loss (padding, masked prompts) have rows of exact zeros, and taking
    a mean from those would turn them into noise. rows is 1 where any element is not zero, else 0 (NaN is not zero).
    The mean is zero below `min_rows` such rows; the sum, which is the bias gradient, is always the sum. The common mean
    is the mean where every row counts, else zero.
    """
    rows = (x != 0).any(1).to(torch.float32)
    count = rows.sum()
    total = x.to(torch.float32).sum(0)
    mean = torch.where(count >= min_rows, total / count.clamp(min=1), 0.0)
    return mean, rows, total, torch.where(count == x.shape[0], mean, 0.0)


def token_mean_amax(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor]:
    """`token_mean`, and amax [] of x less that."""
    mean = token_mean(x, min_rows)
    return mean, amax(x, mean, None)


def token_mean_nonzero_amax(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`token_mean_nonzero`, amax [] of x less the mean in the rows that count, and of x less the common mean."""
    mean, rows, total, common = token_mean_nonzero(x, min_rows)
    return mean, rows, total, common, amax(x, mean, rows), amax(x, common, None)


def _fake_token_mean(x: Tensor, min_rows: int) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


def _fake_token_mean_nonzero(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = _fake_token_mean(x, min_rows)
    return mean, x.new_empty(x.shape[0], dtype=torch.float32), torch.empty_like(mean), torch.empty_like(mean)


def _fake_token_mean_amax(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor]:
    return _fake_token_mean(x, min_rows), x.new_empty((), dtype=torch.float32)


def _fake_token_mean_nonzero_amax(x: Tensor, min_rows: int) -> tuple[Tensor, ...]:
    largest = [x.new_empty((), dtype=torch.float32) for _ in range(2)]
    return *_fake_token_mean_nonzero(x, min_rows), *largest


declare("token_mean(Tensor x, int min_rows) -> Tensor", reference=token_mean, fake=_fake_token_mean)
declare(
    "token_mean_nonzero(Tensor x, int min_rows) -> (Tensor mean, Tensor rows, Tensor total, Tensor common)",
    reference=token_mean_nonzero,
    fake=_fake_token_mean_nonzero,
)
declare(
    "token_mean_amax(Tensor x, int min_rows) -> (Tensor mean, Tensor amax)",
    reference=token_mean_amax,
    fake=_fake_token_mean_amax,
)
declare(
    "token_mean_nonzero_amax(Tensor x, int min_rows) -> (Tensor mean, Tensor rows, Tensor total, Tensor common,"
    " Tensor amax, Tensor common_amax)",
    reference=token_mean_nonzero_amax,
    fake=_fake_token_mean_nonzero_amax,
)
