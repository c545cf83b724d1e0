"""spectral::split_mm: a product whose low-rank part is computed apart."""

import pytest
import torch
from torch.library import opcheck

from spectral_compile.ops.split_mm import split_mm
from tests.fake_kernels import assert_fake_agrees, assert_one_trace_serves_all_sizes

op = torch.ops.spectral.split_mm.default
GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR)


A, B = randn(9, 30), randn(30, 5)
LEFT, RIGHT = randn(9), randn(5)
LEFT3, RIGHT3 = randn(9, 3), randn(3, 5)
TERMS = {
    "nothing": (None, None, torch.zeros(9, 5)),
    "ones by right": (None, RIGHT, RIGHT.expand(9, 5)),
    "left by right": (LEFT, RIGHT, torch.outer(LEFT, RIGHT)),
    "rank 3": (LEFT3, RIGHT3, LEFT3.double() @ RIGHT3.double()),
    "rank 1 as matrices": (LEFT[:, None], RIGHT[None], torch.outer(LEFT, RIGHT)),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product_plus_low_rank_term_in_fp32(term: str, dtype: torch.dtype) -> None:
    left, right, added = TERMS[term]
    a, b = A.to(dtype), B.to(dtype)
    got = split_mm(a, b, left, right, torch.float32)
    torch.testing.assert_close(got.double(), a.double() @ b.double() + added, rtol=1e-5, atol=1e-5)
    assert torch.equal(split_mm(a, b, left, right, torch.bfloat16), got.bfloat16())  # rounded once, at the end


def test_what_was_split_off_comes_back() -> None:
    x = randn(64, 30) + 50  # a mean that dwarfs the rest
    mean = x.mean(0)
    got = split_mm(x - mean, B, None, mean @ B, torch.float32)
    torch.testing.assert_close(got.double(), x.double() @ B.double(), rtol=1e-5, atol=1e-3)


def test_what_was_split_off_in_rank_r_comes_back() -> None:
    left, directions = randn(64, 4) * 50, randn(4, 30)
    residual = randn(64, 30)
    x = residual + left @ directions
    got = split_mm(residual, B, left, directions @ B, torch.float32)
    torch.testing.assert_close(got.double(), x.double() @ B.double(), rtol=1e-5, atol=1e-2)


def test_the_fake_kernel_agrees() -> None:
    for a, b in ((A, B), (A.t().contiguous().t(), B.t().contiguous().t()), (A[:1], B[:, :1]), (A[:0], B)):
        m, n = a.shape[0], b.shape[1]
        for dtype in (torch.bfloat16, torch.float32):
            assert_fake_agrees(op, a, b, randn(m), randn(n), dtype)
            assert_fake_agrees(op, a, b, randn(m, 3), randn(3, n), dtype)
            assert_fake_agrees(op, a, b, None, randn(n), dtype)
            assert_fake_agrees(op, a, b, None, None, dtype)


def test_one_trace_serves_all_sizes() -> None:
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return op(a, b, None, None, torch.float32)

    assert_one_trace_serves_all_sizes(product, (A, B), (randn(3, 8), randn(8, 4)))


def test_one_trace_serves_all_sizes_and_ranks() -> None:
    def product(*operands: torch.Tensor) -> torch.Tensor:
        return op(*operands, torch.float32)

    others = (randn(4, 8), randn(8, 7), randn(4, 2), randn(2, 7))
    assert_one_trace_serves_all_sizes(product, (A, B, LEFT3, RIGHT3), others)


def test_opcheck() -> None:
    opcheck(op, (A, B, LEFT, RIGHT, torch.bfloat16))
    opcheck(op, (A, B, LEFT3, RIGHT3, torch.bfloat16))
    opcheck(op, (A, B, None, None, torch.float32))
