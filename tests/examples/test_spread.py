"""The spread in miniature: branches from one checkpoint, and the mean's share in a layer's input."""

import json
from pathlib import Path

import pytest
import torch

from examples import spread
from examples.gpt import GPT, GPTConfig
from examples.mean_share import Moments, mean_shares
from examples.training import Arm, Trainer

TINY = [
    "--steps",
    "5",
    "--checkpoint",
    "2",
    "--dim",
    "16",
    "--layers",
    "1",
    "--heads",
    "2",
    "--context",
    "16",
    "--batch",
    "2",
]
CHEAP = Arm("bf16", "eager")


@pytest.fixture
def _cheap_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "BF16", CHEAP)
    monkeypatch.setattr(spread, "parse_arms", lambda names: [Arm("copy", "eager"), CHEAP])


@pytest.mark.usefixtures("_cheap_arms")
def test_branches_start_from_the_same_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spread.main([*TINY, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    baseline, copy = record["arms"]
    assert (baseline["name"], copy["name"]) == ("bf16", "copy")
    assert (len(baseline["losses"]), len(copy["losses"])) == (1, 3)
    assert copy["deviation"] == 0  # no stochastic rounding here: every branch must be the same run
    assert copy["gap_percent"] == pytest.approx(0, abs=0.1)
    assert baseline["deviation"] is baseline["gap_percent"] is None
    assert len(record["layers"]) == 8  # q, k, v, o, gate, up, down and the head
    assert "layers.0.mlp.down_proj" in capsys.readouterr().out


@pytest.mark.usefixtures("_cheap_arms")
def test_ctrl_c_keeps_finished_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step = [0], Trainer.step

    def interrupted(self: Trainer, *args: object) -> float:
        seen[0] += 1
        if seen[0] == 2 + 3 + 3 + 2:  # the checkpoint, bf16, the first branch of the copy, part of the second
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert spread.main([*TINY, "--out", str(tmp_path)]) == 130
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["interrupted"]
    assert [list(arm["losses"]) for arm in record["arms"]] == [["0"], ["0"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--checkpoint", "5"], "checkpoint"), (["--rounding-seeds", "0"], "rounding-seeds")],
)
@pytest.mark.usefixtures("_cheap_arms")
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        spread.main([*TINY, *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message} must be")


def test_mean_share_of_a_known_input() -> None:
    moments = Moments()
    for _ in range(2):
        moments.add(torch.tensor([[[3.0, 1.0], [3.0, -1.0]]]))  # mean (3, 0), deviations (0, 1)
    assert moments.share() == pytest.approx((9 / 10) ** 0.5)


def test_mean_shares_of_a_model() -> None:
    config = GPTConfig(dim=16, layers=1, heads=2, context=8)
    torch.manual_seed(0)
    weights = GPT(config).state_dict()
    tokens = torch.randint(256, (2, 8))
    shares = mean_shares(config, weights, [(tokens, tokens)])
    assert shares[-1].name == "lm_head"
    assert all(0 < layer.share < 1 for layer in shares)
    same = tokens[:1, :1].expand(2, 8)  # one token everywhere: the input is its own mean
    first = mean_shares(config, weights, [(same, same)])[0]
    assert first.share == pytest.approx(1.0, abs=1e-6)
    assert first.to_deviation > 1e3
