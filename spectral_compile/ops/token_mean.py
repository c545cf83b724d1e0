"""spectral::token_mean and spectral::token_mean_nonzero: the row vector that mean removal takes out.

The source is Averis ("The Curse and Blessing of Mean Bias in FP4-Quantized LLM Training"), with two guards of our own.
"""

import torch
from torch import Tensor

from spectral_compile.ops.library import declare


def token_mean(x: Tensor, min_rows: int) -> Tensor:
    """The mean over tokens [features], fp32, of x [tokens, features].

    Zero below `min_rows` tokens: with one token the mean *is* the operand, and the product would silently be in high
    precision. Decided at run time, so one graph serves every batch size.
    """
    if x.shape[0] < min_rows:
        return x.new_zeros(x.shape[1], dtype=torch.float32)
    return x.to(torch.float32).sum(0) / x.shape[0]


def token_mean_nonzero(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over rows that are not all zero, which rows those are, and the sum: [features], [tokens], [features].

    For gradients: tokens that do not count in the loss (padding, masked prompts) have rows of exact zeros, and taking
    a mean from those would turn them into noise. All fp32; rows is 1 where any element is not zero, else 0 (NaN is not
    zero). The mean is zero below `min_rows` such rows; the sum, which is the bias gradient, is always the sum.
    """
    rows = (x != 0).any(1).to(torch.float32)
    count = rows.sum()
    total = x.to(torch.float32).sum(0)
    return torch.where(count >= min_rows, total / count.clamp(min=1), 0.0), rows, total


def _fake_token_mean(x: Tensor, min_rows: int) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


def _fake_token_mean_nonzero(x: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    features = _fake_token_mean(x, min_rows)
    return features, x.new_empty(x.shape[0], dtype=torch.float32), torch.empty_like(features)


declare("token_mean(Tensor x, int min_rows) -> Tensor", reference=token_mean, fake=_fake_token_mean)
declare(
    "token_mean_nonzero(Tensor x, int min_rows) -> (Tensor mean, Tensor rows, Tensor total)",
    reference=token_mean_nonzero,
    fake=_fake_token_mean_nonzero,
)
