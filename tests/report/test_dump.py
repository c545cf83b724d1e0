"""Dumps: what is in the folder, that its files run and compute what the graph does, and that caches hide nothing."""

import ast
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from spectral_compile import register_pass, unregister_pass
from spectral_compile.report.python_code import python_file, short
from tests.capture import capture, compiled_eagerly


def inputs(tokens: int = 64) -> torch.Tensor:
    return torch.randn(tokens, 32, requires_grad=True)


def dumped(folder: Path, **options: object) -> Path:
    capture(nn.Linear(32, 16), inputs(), dump=str(folder), **options)
    return folder / "000"


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


EXPECTED = {
    *("dynamo.py", "joint_0_before.py", "joint_1_mean_center.py", "joint_1_mean_center.diff"),
    *("joint_2_quantize_fp4.py", "joint_2_quantize_fp4.diff", "forward.py", "backward.py"),
    *("plan.json", "plan.txt", "timings.json", "memory.json", "provenance.graphml"),
    *("about.json", "graphs.jsonl", "report.html"),
}


def test_the_folder_holds_each_stage_that_changed_something(tmp_path: Path) -> None:
    folder = dumped(tmp_path, recipe="averis")
    assert names(folder) == EXPECTED  # hadamard changed nothing
    rows = json.loads((folder / "plan.json").read_text())["rows"]
    assert [row["role"] for row in rows] == ["fprop", "dgrad", "wgrad"]
    assert set(json.loads((folder / "timings.json").read_text())) == {"mean_center", "hadamard", "quantize_fp4"}
    provenance = nx.read_graphml(folder / "provenance.graphml")
    assert {data.get("role") for _, data in provenance.nodes(data=True)} >= {"fprop", "dgrad", "wgrad"}
    assert "in four bits" in (folder / "plan.txt").read_text()


def test_each_line_has_its_shape_and_the_pass_that_made_it(tmp_path: Path) -> None:
    text = (dumped(tmp_path, recipe="averis") / "backward.py").read_text()
    lines = [line for line in text.splitlines() if "spectral.scaled_mm" in line]
    assert len(lines) == 2
    assert all(line.endswith(", by quantize_fp4") for line in lines)
    assert any("f32[64, 32], dgrad of the root module, by" in line for line in lines)
    capture(nn.Sequential(nn.Linear(32, 16), nn.Tanh()), inputs(), dump=str(tmp_path / "named"))
    before = (tmp_path / "named" / "000" / "joint_0_before.py").read_text()
    assert sum("wgrad of 0" in line for line in before.splitlines()) == 1
    assert any("token_mean_nonzero" in line and "by mean_center" in line for line in text.splitlines())
    diff = (tmp_path / "000" / "joint_2_quantize_fp4.diff").read_text()
    assert any(line.startswith("-") and "split_mm" in line for line in diff.splitlines())
    assert any(line.startswith("+") and "scaled_mm" in line for line in diff.splitlines())


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_graph_runs(tmp_path: Path, dynamic: bool) -> None:
    capture(nn.Linear(32, 16), inputs(), dump=str(tmp_path), recipe="averis", dynamic=dynamic)
    for name in ("joint_0_before.py", "joint_2_quantize_fp4.py", "forward.py", "backward.py"):
        run = subprocess.run(
            [sys.executable, tmp_path / "000" / name], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        assert run.returncode == 0, run.stderr
        assert "torch.float32 (64, 16)" in run.stdout or name == "backward.py"


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0]


class Everything(nn.Module):
    """What a traced graph may hold beside operators: regions, constants, contexts, random numbers, permuted inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.1))
        self.down = nn.Linear(32, 16)
        self.table = torch.randn(20, 16)
        self.strength = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, x, use_reentrant=False)
        with torch.autocast("cpu", torch.bfloat16):
            y = self.down(x)
        self_ = Doubled.apply(y.float()) * self.strength  # type: ignore[no-untyped-call]
        chosen = self_[:, torch.tensor([0, 2, 5])] + torch.tensor([[1.0, math.inf, 3.0]])
        return (chosen.t() @ chosen + self.table.sum()).clamp(max=10.0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_whatever_a_graph_holds_its_files_run(tmp_path: Path, dynamic: bool) -> None:
    capture(Everything(), inputs(), dump=str(tmp_path), dynamic=dynamic)
    files = sorted(tmp_path.glob("*/*.py"))
    *begun_anew, folder = sorted(tmp_path.iterdir())
    assert names(folder) == EXPECTED
    assert len(begun_anew) == dynamic  # AOTAutograd finds that a dynamic number is needed as one, and stops
    for file in files:
        runpy.run_path(str(file), run_name="__main__")
    program = (folder / "dynamo.py").read_text()
    assert "torch.utils.checkpoint.checkpoint(wrap_body_0, " in program
    assert dynamic or "f32[64, 32], block.0" in program


def test_the_file_of_a_program_computes_what_the_program_does(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh())
    capture(model, inputs(), dump=str(tmp_path))
    file = runpy.run_path(str(tmp_path / "000" / "dynamo.py"))
    x, weight, bias = sorted(file["inputs"](), key=lambda value: -value.numel())
    model.load_state_dict({"0.weight": weight, "0.bias": bias})
    (got,) = file["forward"](*file["inputs"]())
    assert torch.equal(got, model(x))


def test_a_file_computes_what_its_graph_does(tmp_path: Path) -> None:
    captured = capture(nn.Linear(32, 16), inputs(), recipe="nvfp4-plain")
    file = tmp_path / "final.py"
    file.write_text(python_file(captured.final, file.name, "title"))
    namespace: dict[str, object] = {"__name__": "read"}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    arguments = namespace["inputs"]()  # type: ignore[operator]
    graph = fx.GraphModule(nn.Module(), captured.final)
    for got, expected in zip(namespace["forward"](*arguments), graph(*arguments), strict=True):  # type: ignore[operator]
        assert torch.equal(got, expected) if isinstance(got, torch.Tensor) else got == expected


def test_a_cached_compile_still_dumps_and_each_compile_has_a_folder_of_its_own(tmp_path: Path) -> None:
    model, x = nn.Linear(32, 16), inputs()
    for number, dump in enumerate((None, tmp_path, tmp_path)):
        torch._dynamo.reset()
        options = {"recipe": "nvfp4-plain", **({"dump": dump} if dump else {})}
        torch.compile(model, backend="spectral", options=options)(x).sum().backward()
        assert len(list(tmp_path.iterdir())) == number
    for folder in ("000", "001"):
        assert {"forward.py", "backward.py", "joint_1_quantize_fp4.py"} <= names(tmp_path / folder)
    assert "by to_carriers" in (tmp_path / "000" / "forward.py").read_text()
    assert "by to_carriers" in (tmp_path / "000" / "backward.py").read_text()
    ast.parse((tmp_path / "000" / "dynamo.py").read_text())


def test_the_environment_asks_for_a_dump_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRAL_DUMP", str(tmp_path))
    capture(nn.Linear(32, 16), inputs())
    assert names(tmp_path / "000") == EXPECTED
    monkeypatch.delenv("SPECTRAL_DUMP")
    capture(nn.Linear(32, 16), inputs())
    assert len(list(tmp_path.iterdir())) == 1


def test_users_passes_are_dumped_like_ours(tmp_path: Path) -> None:
    @register_pass(name="users_own", after="quantize_fp4")
    def negate(graph: fx.Graph, options: object) -> None:
        (relu,) = graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
        with graph.inserting_after(relu):
            new = graph.call_function(torch.ops.aten.neg.default, (relu,))
        new.meta = {**relu.meta}
        relu.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    try:
        capture(nn.Sequential(nn.Linear(32, 16), nn.ReLU()), inputs(), dump=str(tmp_path), recipe="nvfp4-plain")
    finally:
        unregister_pass("users_own")
    assert "by users_own" in (tmp_path / "000" / "joint_2_users_own.py").read_text()


def test_passes_on_the_program_are_dumped_too(tmp_path: Path) -> None:
    @register_pass(name="users_own", stage="dynamo")
    def squared(graph: fx.Graph, options: object) -> None:
        for relu in graph.find_nodes(op="call_function", target=torch.relu):
            with graph.inserting_after(relu):
                new = graph.call_function(torch.square, (relu,))
            new.meta = {**relu.meta}
            relu.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)

    model = nn.Sequential(nn.Linear(32, 16), nn.Tanh())
    try:
        capture(model, inputs(), dump=str(tmp_path / "unchanged"))
        capture(lambda x: torch.relu(model(x)), inputs(), dump=str(tmp_path))
    finally:
        unregister_pass("users_own")
    assert names(tmp_path / "unchanged" / "000") == EXPECTED
    folder = tmp_path / "000"
    assert names(folder) == EXPECTED | {"dynamo_1_users_own.py", "dynamo_1_users_own.diff"}
    assert "torch.square" not in (folder / "dynamo.py").read_text()
    (line,) = [line for line in (folder / "dynamo_1_users_own.py").read_text().splitlines() if "torch.square" in line]
    assert line.endswith("# f32[64, 16], by users_own")
    runpy.run_path(str(folder / "dynamo_1_users_own.py"), run_name="__main__")
    assert "users_own" in json.loads((folder / "timings.json").read_text())


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"option 'dump': .* is no folder to write to"):
        compiled_eagerly(nn.Linear(32, 16), dump=str(tmp_path / "file"))(inputs())


def test_types_have_short_names() -> None:
    names = {torch.bfloat16: "bf16", torch.float32: "f32", torch.uint8: "u8", torch.int64: "i64", torch.bool: "bool"}
    assert all(short(dtype) == name for dtype, name in names.items())
