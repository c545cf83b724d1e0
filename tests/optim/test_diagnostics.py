"""Spectra of weights against the exact SVD."""

import json

import pytest
import torch
from torch import nn

from spectral_compile.optim import Spectra, WeightSpectra, parameter_groups
from tests.integration.models import TinyLM, tokens
from tests.optim.matrices import matrix


def linear(weight):
    model = nn.Sequential(nn.Linear(*weight.shape[::-1], bias=False))
    model[0].weight.data = weight
    return model


def exact(W, G, top):
    U, s, Vt = torch.linalg.svd(W.double())
    rank = s.square().sum() / s[0].square()
    counted = min(int(rank), top)
    along = torch.stack([U[:, i] @ G.double() @ Vt[i] for i in range(counted)])
    return rank.item(), s[:top], (along.square().sum() / G.double().square().sum()).item()


@pytest.mark.parametrize("spectrum", ["decaying", "spiked", "clustered"])
def test_against_the_svd(spectrum):
    W = matrix(40, 60, spectrum)
    model = linear(W)
    U, _, Vt = torch.linalg.svd(W)
    G = 3 * torch.outer(U[:, 0], Vt[0]) + 0.05 * torch.randn(40, 60)
    spectra = WeightSpectra(parameter_groups(model), top=6)
    for step in range(8):  # what is not converged yet, is so after some measurements
        model[0].weight.grad = G
        (found,) = spectra.measure(step)
    rank, values, sje = exact(W, G, 6)
    assert found.step == 7
    assert found.stable_rank.item() == pytest.approx(rank, rel=1e-3)
    torch.testing.assert_close(found.singular_values.double(), values, rtol=5e-2, atol=0)
    if spectrum != "clustered":  # of a cluster the directions are anyone's
        assert found.sje.item() == pytest.approx(sje, rel=1e-2)
        assert found.sje > 0.5
    assert ("gradient along" in str(spectra)) == (found.sje.item() > 0.8)
    json.dumps(found.as_dict())


def test_without_a_gradient_and_with_nan():
    model = linear(matrix(20, 30))
    spectra = WeightSpectra(parameter_groups(model), top=3)
    (found,) = spectra.measure(0)
    assert found.sje.isnan()
    assert found.stable_rank.isfinite()
    good = model[0].weight.detach().clone()
    model[0].weight.data.fill_(torch.nan)
    assert spectra.measure(1)[0].stable_rank.isnan()
    model[0].weight.data = good
    assert spectra.measure(2)[0].stable_rank.item() == pytest.approx(found.stable_rank.item(), rel=1e-3)


def test_it_measures_as_the_optimizer_steps():
    model, calls = TinyLM(), []
    grouping = parameter_groups(model, split={"gate": 2})
    optimizer = Spectra(grouping, lr=0.01)
    spectra = WeightSpectra(grouping, every=3, callback=calls.append)
    handle = spectra.attach(optimizer)
    for _ in range(5):
        model(tokens()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [measured[0].step for measured in calls] == [0, 3]
    assert [found.name for found in spectra.latest[:3]] == [
        "blocks.0.gate.weight[0]",
        "blocks.0.gate.weight[1]",
        "blocks.0.up.weight",
    ]
    assert all(0 < found.sje < 1 for found in spectra.latest)
    assert "spectra of the weights at step 3" in str(spectra)
    handle.remove()
    optimizer.step()
    assert len(calls) == 2


def test_it_changes_nothing():
    def train(measured):
        torch.manual_seed(0)
        model = TinyLM()
        grouping = parameter_groups(model)
        optimizer = Spectra(grouping, lr=0.01)
        if measured:
            WeightSpectra(grouping, every=1).attach(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            model(tokens(seed=step)).backward()
            optimizer.step()
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(train(True), train(False))


def test_stacks_have_a_value_for_each_expert():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 8, 12))

    (found,) = WeightSpectra(parameter_groups(Experts()), top=20).measure(0)
    assert found.stable_rank.shape == (3,)
    assert found.singular_values.shape == (3, 8)


def test_bad_arguments():
    with pytest.raises(ValueError, match="1 or more"):
        WeightSpectra(parameter_groups(nn.Linear(2, 2)), every=0)
