"""spectral::product, product_plus_row, product_plus_outer: a product on its carrier, scaled, and what was split off.

`lowering/cpu` puts them in the place of `scaled_mm`, where values need not be codes in between. They are three, for
Inductor keeps the order of an operator's arguments only where no tensor may be absent.
"""

import torch
from torch import Tensor

from spectral_compile.ops.library import declare
from spectral_compile.ops.split_mm import add_low_rank


def product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, out_dtype: torch.dtype) -> Tensor:
    """[m, n] = a [m, k] @ b [k, n] * a_scale * b_scale, in out_dtype.

    a and b hold code * block scale, both in bf16 or both in fp32, in any layout; the product is of their type.
    """
    return _scaled(a, b, a_scale, b_scale).to(out_dtype)


def product_plus_row(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, right: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """The same plus right [n] in every row: a mean that all rows have in common, or a bias."""
    return add_low_rank(_scaled(a, b, a_scale, b_scale), None, right).to(out_dtype)


def product_plus_outer(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, left: Tensor, right: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """The same plus left [m] (outer) right [n], or left [m, r] @ right [r, n]."""
    return add_low_rank(_scaled(a, b, a_scale, b_scale), left, right).to(out_dtype)


def _scaled(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    return (a @ b).to(torch.float32) * a_scale * b_scale  # one by one: their product may underflow


def _fake(a: Tensor, b: Tensor, *rest: Tensor | torch.dtype) -> Tensor:
    assert isinstance(rest[-1], torch.dtype)
    return a.new_empty((a.shape[0], b.shape[1]), dtype=rest[-1])


_OPERANDS = "Tensor a, Tensor b, Tensor a_scale, Tensor b_scale"
declare(f"product({_OPERANDS}, ScalarType out_dtype) -> Tensor", reference=product, fake=_fake)
declare(
    f"product_plus_row({_OPERANDS}, Tensor right, ScalarType out_dtype) -> Tensor",
    reference=product_plus_row,
    fake=_fake,
)
declare(
    f"product_plus_outer({_OPERANDS}, Tensor left, Tensor right, ScalarType out_dtype) -> Tensor",
    reference=product_plus_outer,
    fake=_fake,
)
