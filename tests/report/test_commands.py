"""python -m spectral_compile: doctor and explain."""

import json
from pathlib import Path

import pytest
import torch

from spectral_compile.lowering import cpu
from spectral_compile.report import doctor
from spectral_compile.report.commands import main

MODEL = """
import torch
def small():
    return torch.nn.Linear(32, 16), torch.randn(64, 32)
def alone():
    return torch.nn.Linear(32, 16)
"""


@pytest.fixture(autouse=True)
def _user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "for_test_commands.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_doctor_names_versions_kernels_and_carriers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert "CPU kernels" in printed
    assert "multiply in" in printed


def test_doctor_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler() -> None:
        raise cpu.NoCompilerError("no C++ compiler found: install g++")

    monkeypatch.setattr(cpu, "prepare", no_compiler)
    monkeypatch.setenv("SPECTRAL_DISABLE", "hadamard")
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 1
    findings = {finding.what: finding for finding in doctor.examine()}
    assert findings["CPU kernels"].verdict == "missing"
    assert "install g++" in findings["CPU kernels"].advice
    assert findings["SPECTRAL_DISABLE"].found == "hadamard"
    assert "missing" in capsys.readouterr().out


def test_explain_prints_a_table_or_data(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "for_test_commands:small"])
    assert "in four bits" in capsys.readouterr().out
    main(["explain", "for_test_commands:small", "--json", "--options", '{"recipe": "mxfp4"}'])
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert graph["products"][0]["a"]["format"] == "mxfp4"
    assert graph["products"][0]["dtype"] == "float32"
    main(["explain", "for_test_commands:small", "--json", "--autocast", "bfloat16"])
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert graph["products"][0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["for_test_commands"], "names no function: write MODULE:FUNCTION"),
        (["for_test_commands:missing"], "cannot be had"),
        (["for_test_commands:alone"], "returns Linear, not a pair"),
        (["for_test_commands:small", "--options", "{"], "not JSON"),
        (["for_test_commands:small", "--autocast", "fp4"], "invalid choice: 'fp4'"),
        (["for_test_commands:small", "--options", "[]"], "not a JSON object"),
        (["for_test_commands:small", "--options", '{"recipe": "mxfp"}'], "did you mean 'mxfp4'?"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["explain", *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
