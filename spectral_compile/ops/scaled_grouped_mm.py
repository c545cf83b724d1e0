"""spectral::scaled_grouped_mm: products of quantised groups of tokens, each with its expert's weight.

Groups are as `ops/groups.py` says, operands as `ops/grouped_quantize.py` makes them: fprop and dgrad have blocks along
features, wgrad along tokens, where no block holds tokens of two experts.
"""

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.ops.groups import padded_spans, spans
from spectral_compile.ops.library import declare

spectral = torch.ops.spectral


def scaled_grouped_mm(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scales: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scales: Tensor,
    offsets: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    block: int,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """For each expert, `spectral::scaled_mm` of its part, with its own tensor scales (both [experts]).

    block 0: [m, n], of A [m, k], tokens, and for each expert B [n, k], or [k, n] where b_k_last is false, in a stack;
    left [m] (ones where absent), right [experts, n]. Rows of tokens that are nobody's are 0.
    block > 0: [experts, m, n], of A [m, tokens] and B [n, tokens], whose groups begin at multiples of `block`; each is
    read up to a multiple of k, which is 1 unless a Hadamard transform has filled its last group of 16. left
    [experts, m] and right [experts, n], or [experts, m, r] and [experts, r, n]. An expert without tokens has zeros.

    Carrier as for `scaled_mm`. This reference is the loop; it waits for the offsets, and raises ValueError where those
    fall.
    """
    a = (a_codes, a_scales, a_format)
    b = (b_codes, b_scales, b_format)
    out = a_codes.new_zeros((offsets.shape[0], m, n) if block else (m, n), dtype=out_dtype)
    groups = spans(offsets, _most_tokens(a_codes, a_format) if block else m)
    places = padded_spans(groups, block) if block else groups
    for expert, ((start, end), (first, last)) in enumerate(zip(groups, places, strict=True)):
        if start == end:
            continue
        scales = a_tensor_scales[expert], b_tensor_scales[expert]
        expert_right = None if right is None else right[expert]
        if block:
            extent = -(-(last - first) // k) * k
            expert_left = None if left is None else left[expert]
            stored = (*_columns(*a, first, extent), scales[0], *_columns(*b, first, extent), scales[1])
            how = (m, n, extent, True, True, a_format, b_format, carrier, out_dtype)
            out[expert] = spectral.scaled_mm(*stored, expert_left, expert_right, *how)
        else:
            expert_left = None if left is None else left[start:end]
            matrix = (b_codes[expert], b_scales[expert] if b_scales.numel() else b_scales)
            tokens = (a_codes[start:end], a_scales[start:end])
            how = (end - start, n, k, True, b_k_last, a_format, b_format, carrier, out_dtype)
            out[start:end] = spectral.scaled_mm(*tokens, scales[0], *matrix, scales[1], expert_left, expert_right, *how)
    return out


def _most_tokens(codes: Tensor, format: str) -> int:
    return codes.shape[1] * (1 if format == "identity" else 2)


def _columns(codes: Tensor, scales: Tensor, format: str, first: int, extent: int) -> tuple[Tensor, Tensor]:
    """The whole blocks that hold tokens first to first + extent of a matrix [features, tokens]."""
    if format == "identity":
        return codes[:, first : first + extent], scales
    block = FORMATS[format].block
    blocks = -(-extent // block)
    begin = first // block
    return codes[:, first // 2 : first // 2 + blocks * block // 2], scales[:, begin : begin + blocks]


def _fake(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scales: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scales: Tensor,
    offsets: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    block: int,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    return a_codes.new_empty((offsets.shape[0], m, n) if block else (m, n), dtype=out_dtype)


declare(
    "scaled_grouped_mm(Tensor a_codes, Tensor a_scales, Tensor a_tensor_scales, Tensor b_codes, Tensor b_scales,"
    " Tensor b_tensor_scales, Tensor offsets, Tensor? left, Tensor? right, SymInt m, SymInt n, SymInt k, int block,"
    " bool b_k_last, str a_format, str b_format, str carrier, ScalarType out_dtype) -> Tensor",
    reference=scaled_grouped_mm,
    fake=_fake,
)
