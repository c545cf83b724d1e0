"""The evidence in miniature: branches from one checkpoint, what is kept of them, and how they are compared."""

import json
import math
import shlex
from pathlib import Path

import pytest
import torch

from examples import evidence
from examples.arms import Arm
from examples.branches import Branches, Evidence
from examples.corpus import load_corpus
from examples.gpt import GPTConfig
from examples.training import Trainer, TrainingConfig

SMALL = "--dim 32 --layers 1 --heads 2 --context 32 --batch 2"
TINY = shlex.split(f"{SMALL} --steps 5 --checkpoint 2 --rounding-seeds 2 --draws 2")
BF16 = Arm("bf16", "aot_eager")
COPY = Arm("copy", "aot_eager")
PLAIN = Arm("nvfp4-plain", "spectral", {"recipe": "nvfp4-plain", "codegen": "eager"})
STEPS = 3  # of a branch


def use_arms(monkeypatch: pytest.MonkeyPatch, *arms: Arm) -> None:
    monkeypatch.setattr(evidence, "BF16", BF16)
    monkeypatch.setattr(evidence, "parse_arms", lambda names, layers: list(arms))


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_branches_go_on_from_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_arms(monkeypatch, PLAIN, COPY, BF16)
    arguments = [*TINY, "--out", str(tmp_path)]
    assert evidence.main(arguments) == 0
    record = read(tmp_path)
    baseline, plain, copy = record["arms"]
    assert record["finished"]
    assert shlex.split(record["command"])[3:] == arguments
    assert [arm["name"] for arm in record["arms"]] == ["bf16", "nvfp4-plain", "copy"]
    assert list(baseline["losses"]) == list(plain["losses"]) == list(copy["losses"]) == ["0", "1"]

    first, second = baseline["losses"].values()
    assert first != second  # moved by less than a rounding of bf16: another run, but nearly the same
    assert first == pytest.approx(second, rel=1e-3)
    assert len(set(plain["losses"].values())) == 2  # two rounding seeds
    assert set(copy["losses"].values()) == {first}  # nothing random: the unmoved branch of bf16, twice
    assert copy["deviation"] == 0
    assert copy["against"]["bf16"] is None  # a run repeated says nothing about luck
    assert plain["against"]["bf16"]["difference"] == pytest.approx(plain["mean"] - baseline["mean"])

    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert list(plain["gradient_noise"]["kinds"]) == [*kinds, "all"]
    assert all(kind["relative_deviation"] > 0 for kind in plain["gradient_noise"]["kinds"].values())
    assert copy["gradient_noise"]["kinds"]["all"]["relative_bias"] == 0  # measured at the checkpoint itself
    assert [share["name"] for share in record["means"]["kinds"]] == [*kinds, "lm_head"]
    assert "down_proj" in capsys.readouterr().out


def test_ctrl_c_keeps_finished_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_arms(monkeypatch, BF16, COPY)
    left, step = [2 + 2 * STEPS + STEPS + 1], Trainer.step  # the checkpoint, bf16, the copy's first branch, and more

    def interrupted(self: Trainer, *args: object) -> float:
        left[0] -= 1
        if left[0] < 0:
            # what a killed process would leave: written when the branch ended, not on the way out
            assert [len(arm["losses"]) for arm in read(tmp_path)["arms"]] == [2, 1]
            assert not read(tmp_path)["finished"]
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert evidence.main([*TINY, "--out", str(tmp_path)]) == 130
    record = read(tmp_path)
    assert not record["finished"]
    assert [list(arm["losses"]) for arm in record["arms"]] == [["0", "1"], ["0"]]
    assert record["arms"][1]["gradient_noise"]["kinds"]["all"]["relative_bias"] == 0
    assert record["means"]["layers"]
    assert record["config"]["steps"] == 5


def test_ctrl_c_before_the_checkpoint_leaves_an_empty_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer, *args: object) -> float:
        raise KeyboardInterrupt

    use_arms(monkeypatch, BF16, COPY)
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert evidence.main([*TINY, "--out", str(tmp_path)]) == 130
    assert read(tmp_path)["arms"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "5"], "checkpoint must be between 1 and steps - 1, not 5"),
        (["--checkpoint", "0"], "checkpoint must be"),
        (["--rounding-seeds", "0"], "rounding-seeds must be at least 1, not 0"),
        (["--draws", "1"], "draws must be at least 2, not 1"),
        (["--arms", "nvfp4-plain/last-2"], "the model has 1 blocks"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        evidence.main([*TINY, *arguments])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_nudge_is_below_a_rounding_of_bf16_and_follows_its_seed() -> None:
    torch.manual_seed(0)
    matrix, vector = torch.randn(200, 100), torch.randn(100)
    state = {"model": {"matrix": matrix.clone(), "vector": vector.clone()}, "optimizer": {"step": 7}}
    moved = evidence.nudged(state, 1)
    relative = moved["model"]["matrix"] / matrix - 1
    assert relative.abs().max() <= 2**-9 * 1.001
    assert relative.std().item() == pytest.approx(2**-9 / math.sqrt(3), rel=0.02)  # of a uniform distribution
    assert abs(relative.mean().item()) < 2**-9 * 0.02
    half_step = 2.0 ** (matrix.abs().log2().floor() - 8)  # of bf16's 8 significant bits
    assert ((moved["model"]["matrix"] - matrix).abs() <= half_step).all()
    assert torch.equal(moved["model"]["vector"], vector)
    assert moved["optimizer"] == state["optimizer"]
    assert torch.equal(state["model"]["matrix"], matrix)
    assert torch.equal(evidence.nudged(state, 1)["model"]["matrix"], moved["model"]["matrix"])
    assert not torch.equal(evidence.nudged(state, 2)["model"]["matrix"], moved["model"]["matrix"])


def some_evidence(*arms: Branches) -> Evidence:
    return Evidence("command", TrainingConfig(GPTConfig(layers=1)), load_corpus(), 2, 2, arms=list(arms))


def test_gap_and_differences_have_their_luck_beside_them() -> None:
    found = some_evidence(
        Branches("bf16", {0: 1.99, 1: 2.01}), Branches("nvfp4-plain", {0: 2.01, 1: 2.03}), Branches("averis", {0: 2.2})
    )
    baseline, plain, averis = found.arms
    assert found.gap(baseline) is None
    assert found.gap(plain) == pytest.approx(1.0)
    assert found.percent(plain.deviation) == pytest.approx(100 * 0.02 / 2**0.5 / 2)
    assert list(found.against(baseline)) == ["nvfp4-plain"]
    difference = found.against(plain)["bf16"]
    assert difference is not None
    assert difference.t == pytest.approx(0.02 / 0.02 * 2**0.5)
    assert found.against(averis) == {"bf16": None, "nvfp4-plain": None}  # one branch: no statement


def test_tables_put_the_lowest_loss_first() -> None:
    found = some_evidence(
        Branches("bf16", {0: 1.5, 1: 1.51}),
        Branches("averis", {0: 1.9, 1: 1.92}),
        Branches("nvfp4-plain", {0: 1.4, 1: 1.42}),
        Branches("mxfp4"),  # interrupted in its first branch
    )
    for table in (found.loss_table(), found.difference_table()):
        assert list(table.columns[0].cells) == ["nvfp4-plain", "bf16", "averis"]
    assert list(found.loss_table().columns[3].cells)[1] == "± 0.47 %"  # the noise floor
