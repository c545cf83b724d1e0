"""spectral::grouped_token_mean, grouped_token_mean_nonzero and grouped_center: mean removal, expert by expert.

The mean that sets block scales is that of the tokens that an expert sees: routing sorts tokens, so experts' means
differ, and the mean of all of them would be nobody's.
"""

import torch
from torch import Tensor

from spectral_compile.ops.groups import spans
from spectral_compile.ops.library import declare

spectral = torch.ops.spectral


def grouped_token_mean(x: Tensor, offsets: Tensor, min_rows: int) -> Tensor:
    """`spectral::token_mean` of each expert's tokens of x [tokens, features]: [experts, features], fp32. Zero for an
    expert with fewer than `min_rows` tokens, decided at run time.
    """
    means = _fake_mean(x, offsets, min_rows).zero_()
    for expert, (start, end) in enumerate(spans(offsets, x.shape[0])):
        if end - start >= max(min_rows, 1):
            means[expert] = spectral.token_mean(x[start:end], min_rows)
    return means


def grouped_token_mean_nonzero(x: Tensor, offsets: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`spectral::token_mean_nonzero` of each expert's tokens: mean [experts, features], rows [tokens], sum and common
    mean [experts, features]. Tokens of nobody count nowhere: their rows are 0.
    """
    mean, rows, total, common = (out.zero_() for out in _fake_nonzero(x, offsets, min_rows))
    for expert, (start, end) in enumerate(spans(offsets, x.shape[0])):
        if start < end:
            found = spectral.token_mean_nonzero(x[start:end], min_rows)
            mean[expert], rows[start:end], total[expert], common[expert] = found
    return mean, rows, total, common


def grouped_center(x: Tensor, mean: Tensor, rows: Tensor | None, offsets: Tensor) -> Tensor:
    """x [tokens, features] less, for each token, rows [tokens] times its expert's mean [experts, features]: fp32.
    Tokens of nobody are zero, whatever they held.
    """
    centered = _fake_center(x, mean, rows, offsets).zero_()
    for expert, (start, end) in enumerate(spans(offsets, x.shape[0])):
        part_rows = None if rows is None else rows[start:end]
        centered[start:end] = spectral.center(x[start:end], mean[expert], part_rows)
    return centered


def _fake_mean(x: Tensor, offsets: Tensor, min_rows: int) -> Tensor:
    return x.new_empty((offsets.shape[0], x.shape[1]), dtype=torch.float32)


def _fake_nonzero(x: Tensor, offsets: Tensor, min_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = _fake_mean(x, offsets, min_rows)
    return mean, x.new_empty(x.shape[0], dtype=torch.float32), torch.empty_like(mean), torch.empty_like(mean)


def _fake_center(x: Tensor, mean: Tensor, rows: Tensor | None, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


declare(
    "grouped_token_mean(Tensor x, Tensor offsets, int min_rows) -> Tensor",
    reference=grouped_token_mean,
    fake=_fake_mean,
)
declare(
    "grouped_token_mean_nonzero(Tensor x, Tensor offsets, int min_rows)"
    " -> (Tensor mean, Tensor rows, Tensor total, Tensor common)",
    reference=grouped_token_mean_nonzero,
    fake=_fake_nonzero,
)
declare(
    "grouped_center(Tensor x, Tensor mean, Tensor? rows, Tensor offsets) -> Tensor",
    reference=grouped_center,
    fake=_fake_center,
)
