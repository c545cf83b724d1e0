"""spectral::split_mm: a product whose rank-one part is computed apart."""

import pytest
import torch
from torch.library import opcheck

from spectral_compile.ops.split_mm import split_mm
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes

op = torch.ops.spectral.split_mm.default
A, B = torch.randn(9, 30), torch.randn(30, 5)
LEFT, RIGHT = torch.randn(9), torch.randn(5)


@pytest.mark.parametrize(
    ("left", "right", "added"),
    [
        (None, None, torch.zeros(9, 5)),
        (None, RIGHT, RIGHT.expand(9, 5)),
        (LEFT, RIGHT, torch.outer(LEFT, RIGHT)),
    ],
    ids=["nothing", "ones by right", "left by right"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product_plus_rank_one_in_fp32(
    left: torch.Tensor | None, right: torch.Tensor | None, added: torch.Tensor, dtype: torch.dtype
) -> None:
    a, b = A.to(dtype), B.to(dtype)
    got = split_mm(a, b, left, right, torch.float32)
    torch.testing.assert_close(got.double(), a.double() @ b.double() + added, rtol=1e-5, atol=1e-5)
    assert torch.equal(split_mm(a, b, left, right, torch.bfloat16), got.bfloat16())  # rounded once, at the end


def test_what_was_split_off_comes_back() -> None:
    x = torch.randn(64, 30) + 50  # a mean that dwarfs the rest
    mean = x.mean(0)
    got = split_mm(x - mean, B, None, mean @ B, torch.float32)
    torch.testing.assert_close(got.double(), x.double() @ B.double(), rtol=1e-5, atol=1e-3)


def test_the_fake_kernel_agrees() -> None:
    for a, b in ((A, B), (A.t().contiguous().t(), B.t().contiguous().t()), (A[:1], B[:, :1]), (A[:0], B)):
        for dtype in (torch.bfloat16, torch.float32):
            assert_fake_agrees(op, a, b, torch.randn(a.shape[0]), torch.randn(b.shape[1]), dtype)
            assert_fake_agrees(op, a, b, None, None, dtype)


def test_one_trace_serves_all_sizes() -> None:
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return op(a, b, None, None, torch.float32)

    others = (torch.randn(3, 8), torch.randn(8, 4))
    assert_one_trace_serves_all_sizes(product, (A, B), others)


def test_opcheck() -> None:
    opcheck(op, (A, B, LEFT, RIGHT, torch.bfloat16))
    opcheck(op, (A, B, None, None, torch.float32))
