"""The comparison of smoothing and its controls, in miniature."""

import json

import pytest
import torch

from examples import stability
from examples.corpus import load_corpus
from examples.stability import Case, Outcome, Trigger, random_change, row, train
from spectral_compile.optim import smoothed


def test_a_table_a_case_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stability, "CASES", (Case("adamw", 0.003, True),))
    monkeypatch.setattr(stability, "ARMS", ("none", "smooth"))
    assert stability.main(["--steps", "3", "--seeds", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "adamw, rate 0.003, clipped" in printed
    assert printed.count("0 of 2") == 2
    record = json.loads((tmp_path / "result.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["none", "smooth"]
    runs = [arm["runs"] for arm in record["arms"]]
    assert runs[0] == runs[1]  # nothing triggers, and nothing else differs


def test_every_arm_acts(monkeypatch):
    monkeypatch.setattr(stability, "TRIGGER", Trigger(threshold=1.0001, warmup=0, cooldown=0))
    corpus, case = load_corpus(), Case("sgd", 0.5, False)
    outcomes = {arm: train(case, arm, 0, 6, corpus) for arm in stability.ARMS}
    acted = {arm: outcome.triggers for arm, outcome in outcomes.items()}
    assert acted.pop("none") == acted.pop("every 10") == 0
    assert all(acted.values())
    assert len({outcome.loss for outcome in outcomes.values()}) >= 5


def test_the_random_change_is_as_large_as_that_of_smoothing():
    weight = torch.randn(24, 16)
    size = (smoothed(weight).weight - weight).norm()
    change = random_change(weight, seed=0)
    torch.testing.assert_close(change.norm(), size, rtol=1e-4, atol=0)
    assert torch.linalg.matrix_rank(change) <= int(smoothed(weight).rank)


def test_a_run_without_a_number_has_no_loss():
    lost = Outcome(0, float("inf"), float("inf"), 1, 30)
    kept = Outcome(1, 2.5, 3.0, 0, None)
    assert row("none", [lost, kept]) == "| none | 1 of 2, at step 30 to 30 | 2.500 (2.500 to 2.500) | inf | 0.5 |"
    assert lost.as_dict()["loss"] is None
    assert train(Case("sgd", 1e9, False), "none", 0, 8, load_corpus()).loss == float("inf")
    with pytest.raises(SystemExit):
        stability.main(["--seeds", "none"])
