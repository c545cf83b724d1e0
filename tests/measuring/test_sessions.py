"""Where measurements go: which calls, which file, which table, and what is said where that cannot be."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import spectral_compile as spectral
from spectral_compile.measuring import sessions
from spectral_compile.measuring.sessions import Session, is_idle, record, where


@pytest.fixture(autouse=True)
def _nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_calls", Counter())


def test_every_so_many_training_calls_are_measured_and_no_others() -> None:
    session = Session(3)
    steps = [session.step(training) for training in (True, False, True, True, True, False, True)]
    assert [None if is_idle(step) else int(step[0]) for step in steps] == [0, None, None, None, 3, None, None]


def test_lines_of_json_one_for_each_operand_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_latest", {})
    file = tmp_path / "new" / "numerics.jsonl"
    session = Session(1, [file])
    assert file.read_text() == ""
    shared = [where("q", "fprop", "activation"), where("k", "fprop", "activation")]
    for training_step in (session.step(True), session.step(True)):
        record(training_step, shared, lambda: {"snr_db": 20.0, "clipped": 0.25})
        record(training_step, shared, lambda: pytest.fail("its forward is computed again, and not looked at"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["step"], line["layer"], line["snr_db"]) for line in lines] == [
        *((0, "q", 20.0), (0, "k", 20.0)),
        *((1, "q", 20.0), (1, "k", 20.0)),
    ]
    assert [row["layer"] for row in spectral.numerics().rows] == ["k", "q"]
    assert len(spectral.numerics()) == 2
    table = str(spectral.numerics())
    assert "25.00%" in table
    assert "numerics of 2 operands" in table


def test_two_graphs_do_not_mix(tmp_path: Path) -> None:
    first, second = (Session(1, [tmp_path / name]) for name in ("first", "second"))
    step = first.step(True)
    record(second.step(True), [where("b", "fprop", "weight")], lambda: {"amax": 1.0})
    record(step, [where("a", "fprop", "weight")], lambda: {"amax": 1.0})
    assert [json.loads((tmp_path / name).read_text())["layer"] for name in ("first", "second")] == ["a", "b"]


def test_scalars_for_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        scalars: list[tuple[str, float, int]] = []  # noqa: RUF012

        def __init__(self, folder: str) -> None:
            assert folder == "runs/one"

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.scalars.append((tag, value, step))

    monkeypatch.setattr(sessions, "summary_writer", Writer)
    monkeypatch.setattr(sessions, "_writers", {})
    session = Session(1, (), "runs/one")
    record(session.step(True), [where("up", "wgrad", "gradient")], lambda: {"snr_db": 17.0, "amax": None})
    assert Writer.scalars == [("spectral/snr_db/up/wgrad/gradient", 17.0, 0)]


def test_without_tensorboard_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(sessions, "_writers", {})
    with pytest.raises(ValueError, match="pip install tensorboard"):
        Session(1, (), "runs/one")


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Session(1, [tmp_path / "taken" / "numerics.jsonl"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (0, "every is a number of calls, 1 or more, not 0"),
        (True, "option 'numerics' cannot be True; it is Numerics"),
        ("often", "option 'numerics' cannot be 'often'; it is Numerics"),
    ],
)
def test_bad_settings(given: Any, says: str) -> None:
    compiled = torch.compile(torch.nn.Linear(16, 16), backend="spectral", options={"numerics": given})
    with pytest.raises(Exception, match=says):
        compiled(torch.randn(16, 16))


def test_modules_that_share_code_are_counted_and_named_apart() -> None:
    session = Session(2)
    blocks = [[torch.randn(2), torch.nn.Parameter(torch.randn(2))] for _ in range(3)]
    steps = [session.step(True, block).tolist() for _ in range(3) for block in blocks]
    assert [(call, module) for call, _, module in steps] == [
        *((0, 0), (0, 1), (0, 2)),
        *((-1, 0), (-1, 0), (-1, 0)),
        *((2, 0), (2, 1), (2, 2)),
    ]
    record(session.step(True, blocks[1]), ["up\tfprop\tweight"], dict)
    record(torch.tensor(steps[2]), ["up\tfprop\tweight"], dict)
    assert "up (module 3)" in {row["layer"] for row in spectral.numerics().rows}


def test_the_count_goes_on_when_code_is_compiled_again() -> None:
    first, again = Session(1), Session(1)
    assert [int(session.step(True)[0]) for session in (first, again, first)] == [0, 1, 2]


def test_the_step_stays_on_the_host() -> None:
    with torch.device("meta"):
        assert Session(1).step(True).device.type == "cpu"


def test_a_file_that_has_gone_is_a_warning_not_the_end_of_training(tmp_path: Path) -> None:
    session = Session(1, [tmp_path / "runs" / "numerics.jsonl"])
    shutil.rmtree(tmp_path / "runs")
    with pytest.warns(UserWarning, match="numerics could not be written: FileNotFoundError"):
        record(session.step(True), ["up\tfprop\tweight"], dict)
