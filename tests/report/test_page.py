"""The report's data and its page: what became of each node, that names stay text, and that a folder is enough."""

import base64
import hashlib
import html
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectral_compile.report import folder, page
from spectral_compile.report.commands import main
from spectral_compile.report.history import fates, serves
from tests.capture import capture, compiled_eagerly
from tests.report.conftest import IMAGE, SCRIPT


def embedded(text: str) -> dict[str, Any]:
    """The data of a page, as a browser reads it: an element of script ends at the first "</script"."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture(scope="module")
def data(hostile_dump: Path) -> dict[str, Any]:
    return page.page_data(folder.read(hostile_dump))


def test_names_are_data_and_nothing_else_in_the_page(hostile_dump: Path, data: dict[str, Any]) -> None:
    text = (hostile_dump / "report.html").read_text()
    assert IMAGE not in text
    assert "alert(2)</script>" not in text
    assert "<!--" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert {row["layer"] for row in embedded(text)["rows"]} == {f"parts.{IMAGE}", "parts.{{data}}", SCRIPT, "head"}
    title = html.escape("<b>model") + " 000 - spectral-compile"
    assert f"<title>{title}</title>" in page.render({**data, "title": "<b>model 000 - spectral-compile"})


def test_json_is_safe_inside_a_page() -> None:
    hard = ["</script>", "<!--<script>", "\u2028", "\u00e9", "&amp;", '"']
    text = page.embedded(hard)
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text) == hard


def test_the_policy_allows_its_own_scripts_and_no_network(hostile_dump: Path) -> None:
    text = (hostile_dump / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1]
    assert not re.search(r"(https?:)?//[a-z]+\.[a-z]", re.sub(r"http://www\.w3\.org/2000/svg", "", text))


def test_scripts_make_no_markup_of_text() -> None:
    for script in (Path(page.__file__).parent / "html").glob("*.js"):
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text())
        assert not found, script.name


def test_what_became_of_a_product_is_told_stage_by_stage(hostile_dump: Path) -> None:
    before, centred, quantized, *parts = folder.read(hostile_dump).stages
    first = fates(before, [centred])
    product = before["products"][0]
    assert first[product] == {"to": [centred["products"][0]], "how": "replaced", "by": "mean_center"}
    second = fates(centred, [quantized])
    centre = next(node["name"] for node in centred["nodes"] if node["target"] == "spectral.center.default")
    assert (second[centre]["how"], second[centre]["by"]) == ("folded", "quantize_fp4")
    assert set(second[centre]["to"]) <= {node["name"] for node in quantized["nodes"]}
    assert [part["kind"] for part in parts] == ["forward", "backward"]
    assert not set(fates(quantized, parts)) & set(quantized["products"])


def test_the_quantisation_of_an_operand_is_told_to_work_for_its_products(hostile_dump: Path) -> None:
    quantized = folder.read(hostile_dump).stages[2]
    targets = {node["name"]: node["target"] for node in quantized["nodes"]}
    found = serves(quantized)
    assert all(name in found for name, target in targets.items() if target.startswith("spectral.quantize"))
    assert any(len(rows) > 1 for name, rows in found.items() if targets[name].startswith("spectral.quantize"))
    assert not any(name in found for name, target in targets.items() if target.startswith("aten.relu"))


def test_a_node_knows_its_parameter_and_the_users_line(hostile_dump: Path) -> None:
    before = folder.read(hostile_dump).stages[0]
    assert f"parts.{IMAGE}.weight" in {node.get("parameter") for node in before["nodes"]}
    product = next(node for node in before["nodes"] if node["name"] == before["products"][0])
    last = before["sources"][product["source"]][-1]
    assert last["file"].endswith("conftest.py")
    assert last["code"] == "x = part(x).relu()"


def test_the_summary_agrees_with_the_plan(hostile_dump: Path, data: dict[str, Any]) -> None:
    told = data["summary"]
    assert (told["products"], told["in_four_bits"]) == (11, 8)
    assert told["reasons"] == [("output head: its result goes into the loss", 3)]
    assert told["work"] == 2 * 64 * (2 * 32 * 64 + 3 * 64 * 32 + 3 * 32 * 32 + 3 * 32 * 16)
    assert 0 < told["work_in_four_bits"] < told["work"]
    assert 0 < told["saved"] < told["saved_unchanged"]
    assert sum(size for _, size in told["kept"]) == told["saved"]
    assert all(row["saved"] == 0 for row in data["rows"] if row["role"] == "fprop")


def test_measurements_may_be_half_written_and_no_numbers(data: dict[str, Any]) -> None:
    assert len(data["numerics"]) == 6
    assert {one["snr_db"] for one in data["numerics"] if one["operand"] == "gradient"} == {None}


def test_a_report_is_made_again_from_the_folder_alone(
    hostile_dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(hostile_dump, copy / "000", ignore=shutil.ignore_patterns("report.html", "*.graphml"))
    main(["report", str(copy / "000"), "-o", str(tmp_path / "one.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "one.html")
    assert embedded((tmp_path / "one.html").read_text())["rows"]
    shutil.copytree(copy / "000", copy / "001")
    main(["report", str(copy)])
    expected = [copy / "000" / "report.html", copy / "001" / "report.html"]
    assert capsys.readouterr().out.split() == list(map(str, expected))
    assert all(file.exists() for file in expected)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda folder: None, "holds no dump: there is no plan.json in it"),
        (lambda folder: folder.rmdir(), "is no folder"),
        (lambda folder: (folder / "plan.json").write_text("{}"), "was written by an older version, without graphs"),
        (lambda folder: [(folder / n).write_text("{") for n in ("plan.json", "graphs.jsonl")], "cannot be read"),
        (lambda folder: [shutil.copytree(folder, folder / n) for n in "ab"], "holds no dump"),
    ],
)
def test_what_is_no_dump_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Any, message: str
) -> None:
    asked = tmp_path / "asked"
    asked.mkdir()
    broken(asked)
    with pytest.raises(SystemExit) as end:
        main(["report", str(asked)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_one_file_is_not_for_several_graphs(
    hostile_dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("000", "001"):
        shutil.copytree(hostile_dump, tmp_path / name)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "-o", "one.html"])
    assert "holds 2 graphs: -o is for one" in capsys.readouterr().err


def test_dynamic_sizes_and_graphs_without_a_backward_are_reported_too(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module=r"torch\..*")
        capture(nn.Linear(32, 16), torch.randn(64, 32), dump=str(tmp_path), dynamic=True)
        capture(nn.Linear(32, 16), torch.randn(64, 32), dump=str(tmp_path), training=False)
    dynamic = embedded((tmp_path / "000" / "report.html").read_text())
    assert dynamic["summary"]["share_of_work"] == 1.0
    assert isinstance(dynamic["summary"]["work"], str)
    assert "B" in dynamic["summary"]["saved_text"]
    inference = embedded((tmp_path / "001" / "report.html").read_text())
    assert inference["summary"]["saved"] is None
    assert {stage["kind"] for stage in inference["stages"]} == {"joint"}


def test_inductors_own_parts_follow_on_the_joint_graph(tmp_path: Path) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(nn.Linear(32, 16), backend="spectral", options={"dump": tmp_path, "recipe": "nvfp4-plain"})
    compiled(torch.randn(64, 32)).sum().backward()
    *joint, forward, backward = folder.read(tmp_path / "000").stages
    fate = fates(joint[-1], [forward, backward])[joint[-1]["products"][0]]
    assert (fate["how"], fate["by"]) == ("replaced", "to_carriers")
    assert forward["products"][0] in fate["to"]
    assert json.loads((tmp_path / "000" / "memory.json").read_text())["saved"] > 0


def test_a_report_that_fails_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise KeyError("nodes")

    monkeypatch.setattr(page, "write", fail)
    torch._dynamo.reset()
    with pytest.warns(UserWarning, match=r"report.html could not be written: KeyError: 'nodes'"):
        compiled_eagerly(nn.Linear(32, 16), dump=str(tmp_path))(torch.randn(64, 32)).sum().backward()


def test_without_a_dump_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(*_: Any) -> None:
        raise AssertionError("a report was prepared that nobody asked for")

    monkeypatch.setattr("spectral_compile.report.dump.replacements", noted)
    monkeypatch.setattr("spectral_compile.report.dump.as_data", noted)
    capture(nn.Linear(32, 16), torch.randn(64, 32))
