"""spectral::grouped_split_mm: products of groups of tokens whose low-rank part is computed apart."""

import torch
from torch import Tensor

from spectral_compile.ops.groups import spans
from spectral_compile.ops.library import declare

spectral = torch.ops.spectral


def grouped_split_mm(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    ragged_k: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """For each expert, `spectral::split_mm` of its tokens.

    ragged_k false: [tokens, n], of a [tokens, k] and a stack b [experts, k, n]; left [tokens] (ones where absent),
    right [experts, n]; tokens of nobody are zero. ragged_k true: [experts, m, n], of a [tokens, m], transposed, and
    b [tokens, n]; left [experts, m] and right [experts, n], or [experts, m, r] and [experts, r, n].
    """
    out = _fake(a, b, offsets, left, right, ragged_k, out_dtype).zero_()
    for expert, (start, end) in enumerate(spans(offsets, a.shape[0])):
        if start == end:
            continue
        expert_right = None if right is None else right[expert]
        if ragged_k:
            expert_left = None if left is None else left[expert]
            tokens = a[start:end].t(), b[start:end]
            out[expert] = spectral.split_mm(*tokens, expert_left, expert_right, out_dtype)
        else:
            expert_left = None if left is None else left[start:end]
            out[start:end] = spectral.split_mm(a[start:end], b[expert], expert_left, expert_right, out_dtype)
    return out


def _fake(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    ragged_k: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    shape = (offsets.shape[0], a.shape[1], b.shape[1]) if ragged_k else (a.shape[0], b.shape[2])
    return a.new_empty(shape, dtype=out_dtype)


declare(
    "grouped_split_mm(Tensor a, Tensor b, Tensor offsets, Tensor? left, Tensor? right, bool ragged_k,"
    " ScalarType out_dtype) -> Tensor",
    reference=grouped_split_mm,
    fake=_fake,
)
