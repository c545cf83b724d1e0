"""The comparison of optimizers, in miniature."""

import json
import math

import pytest
import torch
from torch import nn

from benchmarks import optimizers
from benchmarks.optimizer_steps import NAMES, Matrices, Together, costs, made, state_bytes
from benchmarks.optimizers import Run, best, cost_row, loss_row, train
from examples.corpus import load_corpus
from examples.gpt import GPT, GPTConfig
from spectral_compile.optim import Spectra

TINY = GPTConfig(dim=16, layers=1, heads=2, context=16)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(optimizers, "MODEL", TINY)
    monkeypatch.setattr(optimizers, "BATCH", 2)
    yield
    torch.set_num_threads(threads)


def test_hidden_matrices_go_to_the_optimizer_in_question_and_all_parameters_to_one():
    model = GPT(TINY)
    hidden = {id(p) for name, p in model.layers.named_parameters() if p.dim() == 2}
    for name in NAMES:
        optimizer = made(name, model, 0.5)
        owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(owned) == sorted(id(p) for p in model.parameters())
        assert all(group["lr"] == 0.5 for group in optimizer.param_groups)
    muon = made("muon", model)
    assert isinstance(muon, Together)
    assert isinstance(muon.parts[0], torch.optim.Muon)
    assert {id(p) for group in muon.parts[0].param_groups for p in group["params"]} == hidden
    spectra = made("spectra", model)
    assert isinstance(spectra, Spectra)
    assert {id(p) for g in spectra.param_groups if g["method"] == "spectra" for p in g["params"]} == hidden
    assert {group["rank"] for group in made("spectra-rank-0.25", model).param_groups} == {0.25}


def test_one_rate_moves_a_matrix_as_far_with_muon_as_with_spectra():
    moved = {}
    for name in ("muon", "spectra"):
        torch.manual_seed(0)
        model = Matrices([(64, 96)])
        (weight,) = model.parameters()
        weight.data.zero_()  # which cannot decay
        weight.grad = torch.randn_like(weight)
        made(name, model, 1.0).step()
        moved[name] = weight.detach().square().mean().sqrt().item()
    assert moved["spectra"] == pytest.approx(0.2, rel=1e-3)
    assert moved["muon"] == pytest.approx(0.2, rel=0.2)  # five Newton-Schulz steps leave singular values of .7 to 1.2


def test_steps_and_state_of_square_matrices():
    found = costs(lambda: Matrices([(200, 200)]), rounds=1)
    assert list(found) == list(NAMES)
    assert found["adamw"].share == 1
    assert found["muon"].share == pytest.approx(0.5, abs=1e-4)  # AdamW counts its steps as well
    assert found["spectra"].share == pytest.approx(0.5075, abs=1e-4)
    assert found["muon"].times_faster.median == 1
    assert all(cost.milliseconds.median > 0 for cost in found.values())
    assert cost_row("spectra", "a matrix", found["spectra"]).endswith("| 0.15 | 0.5075 |")


def test_state_is_counted_over_all_parts():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = made("muon", model)
    optimizer.step()
    assert state_bytes(optimizer) == 4 * (8 * 16 + 16 * 16 + 2 * (2 * 16 + 1))


def test_a_run_is_of_its_seed_and_learns():
    corpus = load_corpus()
    first, again, other = (train("spectra", 0.03, seed, 12, corpus) for seed in (0, 0, 1))
    assert (first.half, first.end) == (again.half, again.end)
    assert first.end != other.end
    assert first.end < first.half < math.log(256) + 0.1


def test_a_run_without_a_number_is_infinitely_bad(monkeypatch):
    monkeypatch.setattr(optimizers, "made", lambda name, model: torch.optim.SGD(model.parameters(), lr=1.0))
    lost = train("adamw", 1e30, 0, 6, load_corpus())
    assert lost.end == math.inf
    assert lost.as_dict()["end"] is None


def test_the_best_rate_and_whether_the_grid_ends_there():
    runs = [Run("muon", rate, 0, 3.0, end) for rate, end in ((0.1, 2.0), (0.2, 1.0), (0.4, math.inf))]
    assert best(runs, [0.1, 0.2, 0.4]) == (0.2, True)
    assert best(runs[:2], [0.1, 0.2]) == (0.2, False)
    assert loss_row("muon", 0.2, False, runs[:2]) == (
        "| muon | 0.2, the edge of the grid | 3.0000 | 1.5000 (1.0000 to 2.0000) |"
    )


def test_tables_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(optimizers, "LARGE", (24, 32))
    monkeypatch.setattr(optimizers, "GPTConfig", lambda: TINY)
    said = ["--steps", "2", "--seeds", "1", "--rates", "0.002,0.001", "--rounds", "1", "--out", str(tmp_path)]
    assert optimizers.main(said) == 0
    printed = capsys.readouterr().out
    assert "| optimizer | 0.001 | 0.002 |" in printed
    record = json.loads((tmp_path / "result.json").read_text())
    assert [(run["optimizer"], run["rate"]) for run in record["tuning"]] == [
        (n, r) for n in NAMES for r in (1e-3, 2e-3)
    ]
    assert [run["seed"] for run in record["runs"]] == [1, 1, 1]  # 0 chose the rate
    assert list(record["costs"]["24 x 32"]) == list(NAMES)
    assert optimizers.main(["--step-only", *said]) == 0
    assert "after half the steps" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "said",
    [
        *(["--rates", "fast"], ["--rates", "0"], ["--seeds", "0"], ["--steps", "1"]),
        *(["--optimizers", "adam"], ["--optimizers", "spectra-rank-2"], ["--optimizers", "spectra-rank-x"]),
    ],
)
def test_arguments_that_cannot_be(said):
    with pytest.raises(SystemExit) as exit:
        optimizers.main(said)
    assert exit.value.code == 2
