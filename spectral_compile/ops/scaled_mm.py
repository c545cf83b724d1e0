"""spectral::scaled_mm: a product of two quantised matrices, with the split-off rank-one part added back."""

import torch
from torch import Tensor

from spectral_compile.ops.dequantize import carried
from spectral_compile.ops.library import declare
from spectral_compile.ops.split_mm import add_low_rank


def scaled_mm(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scale: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scale: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    a_k_last: bool,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """[m, n] = A B' * tensor scales + left (outer) right, in out_dtype; left and right as for `split_mm`.

    A is stored [m, k] and B [n, k], or the other way round where `a_k_last`, `b_k_last` are false: a weight quantised
    in square blocks serves fprop and dgrad from one set of codes. `carrier` names the arithmetic of the product
    ("bf16", "fp32"): code times block scale is exact in either, sums are fp32. This reference always sums in fp32.
    """
    a = carried(a_codes, a_scales, a_format, k if a_k_last else m).to(torch.float32)
    b = carried(b_codes, b_scales, b_format, k if b_k_last else n).to(torch.float32)
    product = (a if a_k_last else a.t()) @ (b.t() if b_k_last else b)
    product = product * a_tensor_scale * b_tensor_scale  # one by one: their product may underflow
    return add_low_rank(product, left, right).to(out_dtype)


def _fake(
    a_codes: Tensor,
    a_scales: Tensor,
    a_tensor_scale: Tensor,
    b_codes: Tensor,
    b_scales: Tensor,
    b_tensor_scale: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    m: int,
    n: int,
    k: int,
    a_k_last: bool,
    b_k_last: bool,
    a_format: str,
    b_format: str,
    carrier: str,
    out_dtype: torch.dtype,
) -> Tensor:
    return a_codes.new_empty((m, n), dtype=out_dtype)


declare(
    "scaled_mm(Tensor a_codes, Tensor a_scales, Tensor a_tensor_scale, Tensor b_codes, Tensor b_scales,"
    " Tensor b_tensor_scale, Tensor? left, Tensor? right, SymInt m, SymInt n, SymInt k, bool a_k_last, bool b_k_last,"
    " str a_format, str b_format, str carrier, ScalarType out_dtype) -> Tensor",
    reference=scaled_mm,
    fake=_fake,
)
