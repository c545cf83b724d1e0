"""Overlap and alignment against subspaces that are known, and against principal angles found another way."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spectral_compile
from spectral_compile.moe import expert_overlap, router_alignment


def reading(V, m, seed=0):
    """A matrix [m, n] whose top right singular vectors are the columns of V [n, r], then weaker noise."""
    chance = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, V.shape[1], generator=chance, dtype=torch.float64)).Q
    strong = U * torch.arange(V.shape[1] + 10, 10, -1) @ V.mT
    return strong + 1e-9 * torch.randn(m, len(V), generator=chance, dtype=torch.float64)


def test_overlap_by_hand():
    e = torch.eye(6, dtype=torch.float64)
    turned = (e[:, 1] + e[:, 2]) / 2**0.5  # at 45 degrees to e1 and e2
    bases = [e[:, :2], torch.stack([e[:, 0], turned], 1), e[:, 4:]]
    weights = torch.stack([reading(V, 5, seed) for seed, V in enumerate(bases)])
    assert expert_overlap(weights, 2).item() == pytest.approx((0.75 + 0 + 0) / 3, abs=1e-6)
    assert expert_overlap(weights[[0, 0]], 2).item() == pytest.approx(1)
    assert expert_overlap(weights[[0, 2]].float(), 2).item() == pytest.approx(0, abs=1e-6)


@given(st.integers(2, 4), st.integers(2, 7), st.integers(2, 7), st.integers(0, 2**16), st.data())
def test_overlap_is_the_mean_squared_cosine_of_principal_angles(experts, m, n, seed, data):
    rank = data.draw(st.integers(1, min(m, n)))
    weights = torch.randn(experts, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # eigenvectors of W'W, and angles as singular values of V_i' V_j
    V = [torch.linalg.eigh(W.mT @ W).eigenvectors[:, -rank:] for W in weights]
    cosines = [torch.linalg.svdvals(a.mT @ b).square().mean() for a, b in itertools.combinations(V, 2)]
    assert expert_overlap(weights, rank).item() == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-6)


def test_of_random_experts_rank_by_n_is_expected():
    torch.manual_seed(0)
    assert expert_overlap(torch.randn(40, 30, 50), 5).item() == pytest.approx(5 / 50, rel=0.1)
    assert router_alignment(torch.randn(200, 50), torch.randn(200, 6, 50), 5).mean().item() == pytest.approx(
        0.1, rel=0.2
    )


def test_alignment_by_hand():
    e = torch.eye(6, dtype=torch.float64)
    experts = torch.stack([reading(e[:, :2], 5), reading(e[:, 4:], 5)])
    router = torch.stack([3 * e[:, 0] + 4 * e[:, 3], -2 * e[:, 5]])
    torch.testing.assert_close(router_alignment(router, experts, 2), torch.tensor([9 / 25, 1.0]).double())
    router.requires_grad_()
    assert not router_alignment(router, experts.requires_grad_(), 2).requires_grad


def test_they_are_found_in_the_package():
    assert spectral_compile.moe.expert_overlap is expert_overlap


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expert_overlap(torch.randn(3, 4), 1), "stack of matrices"),
        (lambda: expert_overlap(torch.randn(0, 3, 4), 1), "stack of matrices"),
        (lambda: expert_overlap(torch.randn(1, 3, 4), 1), "two experts"),
        (lambda: expert_overlap(torch.randn(2, 3, 4), 4), "rank: 1 .. 3"),
        (lambda: expert_overlap(torch.randn(2, 3, 4), 0), "rank: 1 .. 3"),
        (lambda: expert_overlap(torch.full((2, 3, 4), torch.nan), 1), "finite"),
        (lambda: expert_overlap(torch.zeros(2, 3, 4), 1), "expert 0 has a rank below 1"),
        (lambda: expert_overlap(torch.ones(2, 3, 4), 2), "expert 0 has a rank below 2"),
        (lambda: router_alignment(torch.randn(2, 3), torch.randn(2, 3, 4), 1), "transposed"),
        (lambda: router_alignment(torch.randn(3, 4), torch.randn(2, 3, 4), 1), "transposed"),
        (lambda: router_alignment(torch.zeros(2, 4), torch.randn(2, 3, 4), 1), "zero or not finite"),
        (lambda: router_alignment(torch.full((2, 4), torch.inf), torch.randn(2, 3, 4), 1), "zero or not finite"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
