"""Smoothing against the exact SVD."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectral_compile.optim import Smoothing, Split, smoothed
from spectral_compile.optim.parts import parts_of
from spectral_compile.optim.smoothing import FUNCTIONS, rank_to_smooth, reshaped, smoothed_by, squared_norm
from spectral_compile.optim.subspace import power_step, rotated
from tests.optim.matrices import SPECTRA, matrix

EXACT = {"iterations": 25, "cap": 1e9}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("spectrum", ["decaying", "clustered", "spiked"])
def test_only_the_top_singular_values_change(function, spectrum):
    W = matrix(50, 80, spectrum)
    found = smoothed(W, Smoothing(function=function, **EXACT))
    k = int(found.rank)
    U, s, Vt = torch.linalg.svd(W.double(), full_matrices=False)
    assert k == max(math.floor(s.square().sum() / s[0].square()), math.ceil(0.05 * 50))
    target = reshaped(s, torch.tensor(k), function)
    assert torch.equal(target[k:], s[k:])
    expected = (U * target) @ Vt
    torch.testing.assert_close(found.weight.double(), expected, rtol=0, atol=2e-3 * s[0].item())
    rest_U, rest_V = U[:, k + 1 :], Vt[k + 1 :].T
    torch.testing.assert_close(
        rest_U.T @ found.weight.double() @ rest_V, torch.diag(s[k + 1 :]), rtol=0, atol=2e-4 * s[0].item()
    )
    change = (found.weight - W).norm() / W.norm()
    assert found.change.item() == pytest.approx(change.item(), rel=1e-3, abs=1e-6)


def test_clipping_leaves_a_flat_top():
    W = matrix(64, 64)
    s = torch.linalg.svdvals(smoothed(W, Smoothing(share=0.1, **EXACT)).weight)
    before = torch.linalg.svdvals(W)
    torch.testing.assert_close(s[:7], before[7].expand(7), rtol=2e-2, atol=0)
    torch.testing.assert_close(s[8:], before[8:], rtol=2e-3, atol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_change_is_capped(function):
    W = matrix(64, 64)
    found = smoothed(W, Smoothing(function=function, cap=0.07))
    change = ((found.weight - W).norm() / W.norm()).item()
    assert change == pytest.approx(found.change.item(), rel=1e-3)
    assert change < 0.07 * 1.001
    uncapped = smoothed(W, Smoothing(function=function, cap=1e9))
    if uncapped.change > 0.07:  # the same direction, less far
        a, b = (found.weight - W).flatten(), (uncapped.weight - W).flatten()
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999
        assert change == pytest.approx(0.07, rel=1e-3)


def test_uncapped_clipping_would_take_nearly_everything_of_a_slow_spectrum():
    s = SPECTRA["decaying"](1024)
    clipped = reshaped(s, torch.tensor(52), "clip")
    assert 1 - clipped.square().sum() / s.square().sum() > 0.97


def test_functions_by_hand():
    sigma, two = torch.tensor([8.0, 4.0, 2.0, 1.0]), torch.tensor(2)
    torch.testing.assert_close(reshaped(sigma, two, "clip"), torch.tensor([2.0, 2.0, 2.0, 1.0]))
    torch.testing.assert_close(
        reshaped(sigma, two, "log"), torch.tensor([2 + 2 * math.log(4), 2 + 2 * math.log(2), 2, 1])
    )
    soft = [2 * (1 + math.log(2) - math.log(1 + math.exp(1 - x))) for x in (4, 2)]
    torch.testing.assert_close(reshaped(sigma, two, "softplus"), torch.tensor([*soft, 2.0, 1.0]))
    top = 12 / (1 + math.exp(-0.5))
    torch.testing.assert_close(reshaped(sigma, two, "softmax"), torch.tensor([top, 12 - top, 2.0, 1.0]))
    three = torch.tensor(3)
    torch.testing.assert_close(
        reshaped(sigma, three, "conv3"), torch.tensor([16 / 3, 14 / 3, 10 / 3, 1.0])
    )  # (4 8 4), (8 4 2), (4 2 4)


@given(
    values=st.lists(st.floats(0, 1e6), min_size=2, max_size=8),
    count=st.integers(0, 8),
    function=st.sampled_from(FUNCTIONS),
)
def test_functions_in_general(values, count, function):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    count = min(count, len(values) - 1)
    result = reshaped(sigma, torch.tensor(count), function)
    assert torch.equal(result[count:], sigma[count:])
    assert (result >= 0).all()
    torch.testing.assert_close(reshaped(3 * sigma, torch.tensor(count), function), 3 * result)  # no units
    if function in ("clip", "log", "softplus") and count:
        assert (result <= sigma * (1 + 1e-12)).all()
        assert (result[:count] >= sigma[count] * (1 - 1e-12)).all()
        assert (result.diff() <= 1e-9 * sigma[0]).all()


def test_each_matrix_of_a_stack_by_its_own_rank():
    W = torch.stack([matrix(30, 40, spectrum) for spectrum in ("spiked", "clustered", "decaying")])
    together = smoothed(W, Smoothing(**EXACT))
    for i, one in enumerate(W):
        alone = smoothed(one, Smoothing(**EXACT))
        assert together.rank[i] == alone.rank
        torch.testing.assert_close(together.weight[i], alone.weight, rtol=0, atol=1e-2 * one.norm().item())
    assert len(set(together.rank.tolist())) > 1


@pytest.mark.parametrize(
    "W",
    [torch.zeros(8, 12), torch.full((8, 12), torch.nan), torch.randn(1, 12), torch.randn(12, 1), torch.zeros(0, 8, 12)],
    ids=["zero", "NaN", "one row", "one column", "no experts"],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_cannot_be_smoothed_comes_back(W, function):
    found = smoothed(W, Smoothing(function=function))
    assert torch.equal(found.weight.nan_to_num(7), W.nan_to_num(7))
    assert (found.change == 0).all()


def test_one_expert_of_nan_does_not_keep_the_others_from_it():
    W = torch.stack([matrix(12, 16), matrix(12, 16)])
    W[0, 0, 0] = torch.nan
    found = smoothed(W)
    assert found.weight[1].isfinite().all()
    assert not torch.equal(found.weight[1], W[1])
    assert torch.equal(found.weight[0].nan_to_num(7), W[0].nan_to_num(7))


def test_rank_one_is_left_with_its_only_direction_shrunk():
    W = torch.outer(torch.randn(10), torch.randn(14))
    found = smoothed(W, Smoothing(cap=0.1))
    torch.testing.assert_close(found.weight, 0.9 * W, rtol=1e-3, atol=1e-4)


def test_a_tracked_subspace_needs_no_host_sync_and_says_the_same():
    W = matrix(40, 60, "spiked")
    fresh = smoothed(W, Smoothing(share=0.1, iterations=25))
    tracked = rotated(power_step(W, torch.randn(60, 6), iterations=25))
    energy = squared_norm(W)
    count = rank_to_smooth(energy / tracked.s[0].double().square(), 40, 0.1)
    found = smoothed_by(W, tracked, count, energy, Smoothing(share=0.1))
    torch.testing.assert_close(found.weight, fresh.weight, rtol=1e-3, atol=0.1)


def test_bf16_weights_stay_bf16():
    W = matrix(32, 48, "spiked")
    found = smoothed(W.bfloat16())
    assert found.weight.dtype == torch.bfloat16
    torch.testing.assert_close(found.weight.float(), smoothed(W.bfloat16().float()).weight, rtol=2**-8, atol=1e-2)


def test_fused_parts_are_smoothed_apart():
    q, k = matrix(16, 24, "spiked"), matrix(16, 24, "decaying")
    W, cut = torch.cat([q, k]), Split((16, 16))
    first, second = (smoothed(W, part=part) for part in parts_of(W, cut.sizes, cut.dim))
    torch.testing.assert_close(first.weight, smoothed(q).weight)
    torch.testing.assert_close(second.weight, smoothed(k).weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"function": "relu"}, "one of 'clip', 'log', 'softplus', 'softmax', 'conv3'"),
        ({"share": 0.0}, "'share' is of min"),
        ({"cap": 0.0}, "'cap' is a ratio"),
        ({"iterations": 0}, "'iterations' is 1 or more"),
        ({"strength": 1.0}, "no setting 'strength'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Smoothing(**settings)
