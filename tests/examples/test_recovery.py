"""What brings a failed run back, in miniature."""

import json
import math

import pytest
import torch

from examples import recovery
from examples.corpus import load_corpus
from examples.gpt import GPT
from examples.recovery import ARMS, FAILURES, Failure, Recovered, change, fail, go_on, row
from examples.stability import DIVERGED, MODEL, Case
from spectral_compile.optim import parameter_groups


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def failed(corpus):
    """The first case, which takes some fifty small steps to fail."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield fail(FAILURES[0], 0, corpus)
    torch.set_num_threads(threads)


def test_a_checkpoint_is_where_the_loss_was_worse_than_guessing_and_a_number(failed, corpus):
    assert DIVERGED <= failed.loss < math.inf
    assert failed.best < DIVERGED - 1
    assert all(value.isfinite().all() for value in failed.state["model"].values())
    first = go_on(FAILURES[0], failed, "lower", 0, 1, corpus)
    assert first.loss == failed.loss  # the same weights, and the same batch
    assert go_on(FAILURES[0], failed, "rewind + lower", 0, 1, corpus).loss < failed.loss


def test_arms_go_on_differently_and_leave_the_checkpoint_as_it_was(failed, corpus):
    before = {name: value.clone() for name, value in failed.state["model"].items()}
    losses = {arm: go_on(FAILURES[0], failed, arm, 0, 3, corpus).loss for arm in ARMS}
    assert len(set(losses.values()) - {math.inf}) >= 7
    assert all(torch.equal(value, before[name]) for name, value in failed.state["model"].items())


def test_what_is_changed_is_the_hidden_matrices_and_by_as_much_at_random():
    def size(arm):
        torch.manual_seed(0)
        model, same = GPT(MODEL), GPT(MODEL)
        same.load_state_dict(model.state_dict())
        change(model, arm, seed=0)
        hidden = {row.names[0] for row in parameter_groups(model).matrices}
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, same.get_parameter(n))}
        assert moved == (hidden if arm.startswith(("smooth", "random")) else set())
        return [(p - same.get_parameter(n)).norm() for n, p in model.named_parameters() if n in hidden]

    for kind in ("", " all"):
        torch.testing.assert_close(size(f"smooth{kind} + lower"), size(f"random{kind} + lower"), rtol=1e-3, atol=0)
    assert not any(size("lower"))


def test_what_does_not_diverge_is_said():
    with pytest.raises(ValueError, match=r"sgd, rate 0\.001, not clipped; normal rate 0\.001: no 3 losses in a row"):
        fail(Failure(Case("sgd", 0.001, False), 0.001), 0, load_corpus(), most=4)


def test_a_row():
    back, lost, plateau = Recovered(0, 2.5, 12.0, 40), Recovered(1, math.inf, math.inf, None), Recovered(2, 3, 9, None)
    expected = "| lower | 2 of 3 | 2.750 (2.500 to 3.000) | 1 of 3, after 40 to 40 steps | inf |"
    assert row("lower", [back, lost, plateau]) == expected
    assert lost.as_dict() == {"seed": 1, "loss": None, "worst": None, "regained": None}


def test_a_table_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recovery, "FAILURES", FAILURES[:1])
    monkeypatch.setattr(recovery, "ARMS", ("none", "lower"))
    assert recovery.main(["--steps", "2", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert "sgd, rate 1.4, not clipped; normal rate 0.1: failed at step" in capsys.readouterr().out
    record = json.loads((tmp_path / "result.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["none", "lower"]
    assert record["checkpoints"][0]["seed"] == 0
