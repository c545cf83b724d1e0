"""The demo in miniature: text, model, arguments, results. Arms are compiled by cheap backends here."""

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples import demo
from examples.arms import Arm
from examples.corpus import Corpus, batches, is_validation, load_corpus, text_files
from examples.gpt import GPT, GPTConfig
from examples.picture import draw_curves
from examples.results import ArmResult, Run, smooth
from examples.training import Trainer, TrainingConfig

TINY = ["--steps", "6", "--dim", "16", "--layers", "1", "--heads", "2", "--context", "16", "--batch", "2"]
CHEAP = [Arm("bf16", "eager"), Arm("copy", "eager")]


@pytest.fixture
def cheap_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "parse_arms", lambda names, layers: CHEAP)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


# text


def test_corpus_is_the_same_twice_and_is_real_text(corpus: Corpus) -> None:
    assert load_corpus().digest == corpus.digest
    assert len(corpus.train) > 1_000_000
    assert b"import" in corpus.train.numpy().tobytes()


def test_corpus_is_split_by_file(tmp_path: Path) -> None:
    names = [f"folder/file{index}.py" for index in range(200)]
    (tmp_path / "folder" / "__pycache__").mkdir(parents=True)
    for name in [*names, "folder/__pycache__/skipped.py", "folder/skipped.bin"]:
        (tmp_path / name).write_text(f"<{name}>")
    corpus = load_corpus(tmp_path)
    parts = {True: corpus.validation.numpy().tobytes(), False: corpus.train.numpy().tobytes()}
    assert text_files(tmp_path) == sorted(names)
    for name in names:
        assert f"<{name}>".encode() in parts[is_validation(name)]
        assert f"<{name}>".encode() not in parts[not is_validation(name)]
    assert 0 < sum(map(is_validation, names)) < 30


def test_corpus_without_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="files under"):
        load_corpus(tmp_path)


def test_batches_are_deterministic_and_targets_one_byte_later() -> None:
    data = torch.arange(100, dtype=torch.uint8)
    first, again = (list(islice(batches(data, 3, 8, seed=1), 4)) for _ in range(2))
    for (tokens, targets), (same_tokens, _) in zip(first, again, strict=True):
        assert torch.equal(tokens, same_tokens)
        assert tokens.shape == targets.shape == (3, 8)
        assert torch.equal(targets, tokens + 1)
    other = next(batches(data, 3, 8, seed=2))
    assert not torch.equal(first[0][0], other[0])
    with pytest.raises(ValueError, match="context of 100"):
        next(batches(data, 3, 100, seed=1))


# model


def test_model_shapes_and_loss() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(dim=16, layers=2, heads=2, context=8))
    tokens = torch.randint(256, (3, 8))
    logits = model(tokens)
    assert logits.shape == (3, 8, 256)
    assert model(tokens[:, :5]).shape == (3, 5, 256)
    assert model(tokens, tokens).item() == pytest.approx(math.log(256), abs=0.2)
    assert not any(name.endswith(("cos", "sin", "bias")) for name in model.state_dict())


def test_model_is_causal() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(dim=16, layers=2, heads=2, context=8))
    tokens = torch.randint(256, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(before[0, 5], after[0, 5])


def test_rotary_positions_are_relative() -> None:
    """The product of a query at i and a key at j depends on j - i only."""
    from examples.gpt import rotary_tables, rotate

    cos, sin = rotary_tables(10, 8)
    q, k = torch.randn(8), torch.randn(8)
    queries, keys = (rotate(x.expand(1, 1, 10, 8), cos, sin)[0, 0] for x in (q, k))
    products = queries @ keys.T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(7), rtol=1e-4, atol=1e-5)


def test_tied_head_is_the_embedding() -> None:
    model = GPT(GPTConfig(dim=16, layers=1, heads=2, context=8, tied=True))
    assert model.lm_head.weight is model.embedding.weight


# training


def test_learning_rate_warms_up_and_decays() -> None:
    config = TrainingConfig(steps=100, lr=1.0)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_one_step_needs_no_warm_up() -> None:
    config = TrainingConfig(steps=1, lr=1.0)
    assert config.learning_rate(0) == 1.0
    assert config.validates_after(0)


def test_trainer_goes_back_to_a_state(corpus: Corpus) -> None:
    config = TrainingConfig(GPTConfig(16, 1, 2, 16), steps=4, batch=2)
    trainer = Trainer(config, Arm("bf16", "eager"))
    data = list(islice(config.training_batches(corpus), 4))
    for batch in data[:2]:
        trainer.step(batch, 1e-2)
    state = trainer.state()

    def go_on() -> list[float]:
        trainer.restore(state)
        return [trainer.step(batch, 1e-2) for batch in data[2:]]

    assert go_on() == go_on()


# command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "100", "--heads", "3"], "dim 100 does not divide into 3 heads"),
        (["--dim", "6", "--heads", "2"], "dim / heads = 3 is odd"),
        (["--steps", "0"], "steps must be at least 1, not 0"),
        (["--steps", "many"], "invalid int value"),
        (["--lr", "-1"], "lr must be positive"),
        (["--lr", "nan"], "lr must be positive"),
        (["--context", "999999999"], "context of 999999999"),
        (["--arms", ","], "name at least one"),
        (["--arms", "bf16,no-such-recipe"], "unknown arm 'no-such-recipe'"),
        (["--layers", "2", "--arms", "averis/last-3"], "the model has 2 blocks"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as exit_:
        demo.main(["--arms", "bf16", *arguments, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("cheap_arms")
def test_demo_trains_writes_and_tabulates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    first, second = record["arms"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert record["config"]["model"]["dim"] == 16
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["cpu"]
    assert not record["interrupted"]
    assert [arm["name"] for arm in record["arms"]] == ["bf16", "copy"]
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-3)  # same weights, same batches
    assert len(first["train_loss"]) == len(first["step_seconds"]) == 6
    assert first["validation"][-1][0] == 6
    assert first["train_loss"][-1] < first["train_loss"][0]
    assert second["saved_bytes"] > 0
    assert second["gap_percent"] == pytest.approx(0, abs=0.1)
    table = capsys.readouterr().out
    assert "bf16" in table
    assert f"{second['validation'][-1][1]:.4f}" in table


def interrupt_after(steps: int) -> Callable[..., float]:
    step = Trainer.step

    def interrupted(self: Trainer, batch: tuple[Tensor, Tensor], lr: float) -> float:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise KeyboardInterrupt
        return step(self, batch, lr)

    return interrupted


@pytest.mark.usefixtures("cheap_arms")
@pytest.mark.parametrize(("steps", "curves"), [(8, [6, 2]), (3, [3]), (0, [0])])
def test_ctrl_c_keeps_what_was_measured(
    steps: int,
    curves: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "step", interrupt_after(steps))
    assert demo.main([*TINY, "--out", str(tmp_path)]) == 130
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["interrupted"]
    assert [len(arm["train_loss"]) for arm in record["arms"]] == curves
    assert [arm["interrupted"] for arm in record["arms"]] == [False] * (len(curves) - 1) + [True]
    assert (tmp_path / "curves.png").exists()
    assert "interrupted" in capsys.readouterr().out


def test_gap_compares_after_as_many_steps(corpus: Corpus) -> None:
    baseline = ArmResult("bf16", validation=[(10, 2.0), (20, 1.0)])
    partial = ArmResult("averis", validation=[(10, 2.1)], interrupted=True)
    run = Run(TrainingConfig(), corpus, [baseline, partial, ArmResult("other")])
    assert run.gap(partial) == pytest.approx(5.0)
    assert run.gap(baseline) is None
    assert run.gap(run.arms[2]) is None


# picture


def test_smoothing_is_unbiased_at_the_start() -> None:
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    assert smooth([1.0, 3.0], memory=0.5) == pytest.approx([1.0, 7 / 3])
    assert smooth([]) == []


def test_picture_of_unknown_arms_and_without_a_baseline(tmp_path: Path) -> None:
    arms = [ArmResult(name, train_loss=[3.0, 2.0], validation=[(2, 2.1)]) for name in ("mxfp4", "metis")]
    draw_curves(arms, tmp_path / "deeper" / "curves.png")
    assert (tmp_path / "deeper" / "curves.png").exists()
