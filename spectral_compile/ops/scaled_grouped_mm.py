"""spectral::scaled_grouped_mm and pad_groups: products of quantised groups of tokens, each with its expert's weight.

Groups are as `torch._grouped_mm` takes them: tokens in the order of their experts, and for each expert the token after
its last (int32 [experts], on the device; experts may have none; tokens after the last group belong to nobody).

fprop, dgrad: blocks run along features, so tokens are quantised as they lie, and the weights as a stack.
wgrad: blocks run along tokens, and none may hold tokens of two experts, or one's codes would depend on the other's
tokens. So `pad_groups` first moves each group to a multiple of the block, with zeros in between, and the matrix that
comes out is quantised like any other. Its size is a bound that depends on no offset: nobody waits for the device.
"""

import torch
from torch import Tensor

from spectral_compile.formats import FORMATS, Quantized
from spectral_compile.formats.quantized import block_values
from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.library import declare


def pad_groups(x: Tensor, offsets: Tensor, block: int) -> Tensor:
    """x [tokens, features] with each group moved to a multiple of `block`: [padded_tokens(...), features], else zeros.

    Token t of a group lies at `padded_starts` of the group + t. Tokens after the last group are left out.
    """
    token = torch.arange(x.shape[0], device=x.device)
    ends = offsets.to(torch.int64)
    group = torch.searchsorted(ends, token, right=True)
    shift = torch.cat((padded_starts(offsets, block) - _starts(ends), ends.new_zeros(1)))
    kept = group < ends.shape[0]
    padded = x.new_zeros(padded_tokens(x.shape[0], offsets.shape[0], block) + 1, x.shape[1])
    # One more row takes what is nobody's: its number depends on the offsets.
    padded[torch.where(kept, token + shift[group], padded.shape[0] - 1)] = x
    return padded[:-1].clone()


def padded_tokens(tokens: int, experts: int, block: int) -> int:
    """Enough for any offsets: each group needs less than a block more than it has."""
    return (tokens + experts * (block - 1) + block - 1) // block * block


def padded_starts(offsets: Tensor, block: int) -> Tensor:
    """Where each group begins once it is padded, int64 [experts]."""
    ends = offsets.to(torch.int64)
    sizes = ends - _starts(ends)
    padded = (sizes + block - 1) // block * block
    return padded.cumsum(0) - padded


def _starts(ends: Tensor) -> Tensor:
    return torch.cat((ends.new_zeros(1), ends[:-1]))


def scaled_grouped_mm(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scale: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scale: Tensor,
    offsets: Tensor,
    m: int,
    n: int,
    k: int,
    ragged_k: bool,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """ragged_k false: [m, n], of A [m, k], tokens, and for each expert B [n, k], or [k, n] where b_k_last is false, in
    a stack; the rows of tokens that are nobody's are 0. ragged_k true: [experts, m, n], of A [m, k] and B [n, k], whose
    k are the tokens of `pad_groups` with the larger of both blocks; an expert without tokens has zeros.

    Carrier and tensor scales as for `scaled_mm`. This reference reads the offsets on the host. Raises ValueError for an
    operand without codes.
    """
    block = _block(a_format, b_format)
    ends = offsets.tolist()
    if ragged_k:
        a, b = (
            carried(codes, scales, format, k).to(torch.float32)
            for codes, scales, format in ((a_codes, a_scales, a_format), (b_codes, b_scales, b_format))
        )
        first = padded_starts(offsets, block).tolist()
        spans = [(p, p + end - start) for p, start, end in zip(first, (0, *ends), ends, strict=False)]
        products = [a[:, start:end] @ b[:, start:end].t() for start, end in spans]
        product = torch.stack(products) if products else a.new_zeros(0, m, n)
    else:
        a = carried(a_codes, a_scales, a_format, k).to(torch.float32)
        b = block_values(Quantized(b_codes, b_scales, b_scales), b_format)[..., : k if b_k_last else n]
        product = a.new_zeros(m, n)
        for expert, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
            product[start:end] = a[start:end] @ (b[expert].t() if b_k_last else b[expert])
        if m > (end := ends[-1] if ends else 0):
            scaled = product * a_tensor_scale * b_tensor_scale
            scaled[end:] = 0  # of a poisoned tensor too: they are nobody's
            return scaled.to(out_dtype)
    return (product * a_tensor_scale * b_tensor_scale).to(out_dtype)


def _block(*formats: str) -> int:
    """The larger of the formats' blocks."""
    for format in formats:
        if format not in FORMATS:
            raise ValueError(f"grouped products are of {' and '.join(FORMATS)} operands, not of {format!r}")
    return max(FORMATS[format].block for format in formats)


def _fake(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scale: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scale: Tensor,
    offsets: Tensor,
    m: int,
    n: int,
    k: int,
    ragged_k: bool,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    _block(a_format, b_format)
    return a_codes.new_empty((offsets.shape[0], m, n) if ragged_k else (m, n), dtype=out_dtype)


def _fake_pad_groups(x: Tensor, offsets: Tensor, block: int) -> Tensor:
    return x.new_empty(padded_tokens(x.shape[0], offsets.shape[0], block), x.shape[1])


declare("pad_groups(Tensor x, Tensor offsets, int block) -> Tensor", reference=pad_groups, fake=_fake_pad_groups)
declare(
    "scaled_grouped_mm(Tensor a_codes, Tensor a_scales, Tensor a_tensor_scale, Tensor b_codes, Tensor b_scales,"
    " Tensor b_tensor_scale, Tensor offsets, SymInt m, SymInt n, SymInt k, bool ragged_k, bool b_k_last,"
    " str a_format, str b_format, str carrier, ScalarType out_dtype) -> Tensor",
    reference=scaled_grouped_mm,
    fake=_fake,
)
