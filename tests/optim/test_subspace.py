"""The tracked subspace against the exact SVD."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.optim.subspace import orthonormal, power_step, power_steps, rotated, start, top_subspace
from tests.optim.matrices import SPECTRA, matrix, orthogonality


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(40, 70), (70, 40), (32, 32)])
def test_one_step_splits_the_matrix_exactly(m, n, spectrum):
    M = matrix(m, n, spectrum)
    U, s, V = power_step(M, torch.randn(n, 5))  # from any V
    assert orthogonality(U) < 1e-6
    torch.testing.assert_close(V.norm(dim=0), torch.ones(5))
    torch.testing.assert_close((U * s) @ V.T, U @ (U.T @ M), rtol=0, atol=1e-6 * s.max().item())
    rest = M - (U * s) @ V.T
    assert (U.T @ rest).abs().max() < 1e-5 * s.max()
    assert rest.norm().square() == pytest.approx((M.norm().square() - s.square().sum()).item(), rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("spectrum", ["decaying", "clustered", "spiked"])
def test_iterations_converge_to_the_singular_values_and_directions(spectrum):
    M = matrix(60, 90, spectrum)
    _, exact, Vt = torch.linalg.svd(M.double())
    found = top_subspace(M, 3, iterations=20)
    torch.testing.assert_close(found.s.double(), exact[:3], rtol=1e-3, atol=1e-6)
    assert orthogonality(found.U) < 1e-6
    assert orthogonality(found.V) < 1e-6
    if spectrum != "clustered":  # there the fourth is hardly smaller than the third
        overlap = (Vt[:3] @ found.V.double()).square().sum() / 3
        assert overlap > 1 - 1e-4


def test_diag_r_is_positive_so_that_directions_do_not_flip():
    M = matrix(30, 50)
    first = power_step(M, start(M, 4), iterations=10)
    again = power_step(M, first.V)
    assert ((first.U * again.U).sum(0) > 0.99).all()
    assert ((first.V * again.V).sum(0) > 0.99).all()


def test_one_warm_step_follows_a_slow_drift():
    M, drift = matrix(64, 96, "spiked"), matrix(64, 96, "spiked")
    V = start(M, 3)
    for _ in range(20):
        M = 0.99 * M + 0.01 * drift
        V = power_step(M, V).V
    exact = torch.linalg.svd(M).Vh[:3].T
    Q = torch.linalg.qr(V).Q
    assert (exact - Q @ (Q.T @ exact)).norm() < 0.05


@given(
    m=st.integers(1, 24),
    n=st.integers(1, 24),
    batch=st.lists(st.integers(1, 3), max_size=1),
    share=st.floats(0, 1),
    scale=st.sampled_from([1e-25, 1.0, 1e15]),
)
def test_every_shape_and_size(m, n, batch, share, scale):
    M = scale * torch.randn(*batch, m, n)
    k = max(1, int(share * min(m, n)))
    U, s, V = power_step(M, start(M, k), iterations=2)
    assert U.shape == (*batch, m, k)
    assert s.shape == (*batch, k)
    assert V.shape == (*batch, n, k)
    assert orthogonality(U) < 1e-5
    torch.testing.assert_close(V.norm(dim=-2), torch.ones(*batch, k))
    torch.testing.assert_close((U * s[..., None, :]) @ V.mT, U @ (U.mT @ M), rtol=0, atol=1e-5 * s.max().item())


@pytest.mark.parametrize(
    ("columns", "rank"),
    [
        (torch.zeros(9, 4), 0),
        (torch.ones(9, 4), 1),
        (torch.eye(9)[:, [0, 0, 3, 3]], 2),
        (torch.tensor([[1e-30, 1e30, 0, 1e-30]]).expand(9, 4) * torch.eye(9)[:, :4], 3),
    ],
    ids=["zero", "equal", "doubled", "of all sizes"],
)
def test_dependent_columns_come_out_as_zero(columns, rank):
    Q = orthonormal(columns)
    torch.testing.assert_close((Q.mT @ Q).diagonal().sort().values, torch.tensor([0.0] * (4 - rank) + [1.0] * rank))
    torch.testing.assert_close(Q @ (Q.mT @ columns), columns)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_cholesky_qr_holds_where_it_would_break_down_in_fp32(condition):
    U, V = torch.linalg.qr(torch.randn(200, 8)).Q, torch.linalg.qr(torch.randn(8, 8)).Q
    P = (U * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 8)) @ V
    Q = orthonormal(P)
    assert orthogonality(Q) < 1e-6
    assert (P - Q @ (Q.T @ P)).norm() < 1e-6 * P.norm()
    R = Q.double().T @ P.double()
    assert (R.diagonal() > 0).all()
    assert R.tril(-1).abs().max() < 1e-6


def test_a_matrix_of_nan_gives_back_v_and_spares_the_rest_of_its_batch():
    M = torch.randn(3, 12, 16)
    M[1, 4, 4] = torch.nan
    V = start(torch.randn(3, 12, 16), 3)
    found = power_step(M, V)
    assert torch.equal(found.V[1], V[1])
    assert found.s[1].isnan().all()
    turned = rotated(found)
    for result in (found, turned):
        for factor in result[:2]:
            assert factor[[0, 2]].isfinite().all()
    for one in (0, 2):
        torch.testing.assert_close(turned.s[one], rotated(power_step(M[one], V[one])).s)


def test_directions_that_a_matrix_lacks_keep_their_v():
    V = torch.linalg.qr(torch.randn(16, 3)).Q
    assert torch.equal(power_step(torch.zeros(12, 16), V).V, V)
    found = power_step(torch.eye(12, 16) * torch.eye(16)[0], V)  # of rank one
    assert found.s.count_nonzero() == 1
    assert found.V.isfinite().all()


def test_a_batch_is_its_matrices_one_by_one():
    M = torch.stack([matrix(20, 30, spectrum) for spectrum in SPECTRA])
    V = torch.randn(len(SPECTRA), 30, 4)
    batch = power_step(M, V, iterations=2)
    listed = power_steps(list(M), V, iterations=2)
    for i, one in enumerate(M):
        alone = power_step(one, V[i], iterations=2)
        for a, b, c in zip(batch, listed, alone, strict=True):
            torch.testing.assert_close(a[i], c, rtol=1e-4, atol=1e-4)
            assert torch.equal(b[i], c)


def test_bf16_is_multiplied_as_fp32():
    M = matrix(40, 60).bfloat16()
    V = torch.randn(60, 4)
    found, wide = power_step(M, V), power_step(M.float(), V)
    assert found.U.dtype == torch.float32
    for a, b in zip(found, wide, strict=True):
        assert torch.equal(a, b)
    assert start(M, 4).dtype == torch.bfloat16


def test_starting_leaves_the_random_numbers_of_the_user_alone():
    before = torch.get_rng_state()
    M = torch.ones(8, 8)
    assert torch.equal(start(M, 2), start(M, 2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_step_compiles_whole(backend):
    M, V = matrix(20, 30), torch.randn(30, 4)
    compiled = torch.compile(power_step, backend=backend, fullgraph=True)
    for a, b in zip(compiled(M, V), power_step(M, V), strict=True):
        torch.testing.assert_close(a, b)
