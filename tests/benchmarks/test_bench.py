"""The benchmark in miniature, without Inductor: what is recorded, also of an arm that does not run."""

import json
import math
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks import bench, bench_arms, bench_profile
from benchmarks.bench_arms import ARMS, Arm, Runner, quantizing_recipes
from benchmarks.bench_capture import Call, Layout, plan_of
from benchmarks.bench_models import BLOCK_LINEARS, BlockSizes, GPTSizes, Sizes, changed, workload
from benchmarks.bench_processes import Setting, memory
from spectral_compile.config import DEFAULT_RECIPE
from spectral_compile.recipes import ROLES

BLOCK, GPT = "dim=32,ff=48,heads=2,batch=1,length=32", "dim=32,layers=2,heads=2,batch=1,length=32"
SIZES = Sizes(changed(BlockSizes(), BLOCK), changed(GPTSizes(), GPT))
TINY = f"--block {BLOCK} --gpt {GPT} --rounds 1 --threads 1 --codegen eager --copy-mib 1 --baseline 'eager bf16'"


def test_a_run_records_every_arm_and_why_one_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_arms, "ARMS", {**ARMS, "broken": Arm("no such backend")})
    monkeypatch.setattr(bench, "ARMS", bench_arms.ARMS)
    arms = "eager bf16,eager fake-quantised,spectral averis,broken"
    command = f"{TINY} --models block --parts timing,stages --arms '{arms}' --out {tmp_path}"
    assert bench.main(shlex.split(command)) == 0

    record = json.loads((tmp_path / "result.json").read_text())
    assert record["settings"]["sizes"]["block"]["ff"] == 48
    assert record["machine"].keys() >= {"cpu", "cores", "load_before", "load_after"}
    assert record["versions"].keys() == {"python", "torch", "torchao"}
    assert record["command"].startswith("python -m benchmarks.bench --block dim=32")
    block = record["models"]["block"]
    assert list(block["arms"]) == arms.split(",")
    assert "no such backend" in block["arms"].pop("broken")["failed"]
    for row in block["arms"].values():
        for part in ("forward", "backward", "step"):
            assert row[part]["seconds"]["low"] <= row[part]["seconds"]["median"] <= row[part]["seconds"]["high"]
            assert row[part]["ratio"]["median"] > 0
    assert block["arms"]["eager bf16"]["step"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert block["arms"]["spectral averis"]["products"] == {"quantized": 21, "kept_in": ["attention"]}
    assert block["optimizer_seconds"] > 0
    assert {row["name"] for row in block["stages"]["kernels"]} >= {"quantize", "scaled_mm", "token_mean"}
    profile = block["stages"]["profile"]["spectral averis"]
    whole = profile["operators"]["spectral::scaled_mm"]
    parts = [profile["operators"][name] for name in bench_profile.PARTS]
    assert [whole["calls"], *(part["calls"] for part in parts)] == [21] * 4
    assert math.isclose(sum(part["seconds"] for part in parts), whole["seconds"], rel_tol=0.01)
    printed = capsys.readouterr().out
    assert "broken failed: " in printed
    assert "scaled_mm beyond torch.mm" in printed
    assert "torch.mm in the step: spectral averis" in printed


def test_all_linears_of_the_block_are_quantised_in_all_roles() -> None:
    plan = plan_of(workload("block", SIZES), "nvfp4-plain")
    found = {(row.layer.rpartition(".")[2], row.role) for row in plan.quantized}
    assert found == {(layer, role) for layer in BLOCK_LINEARS for role in ROLES}


def test_the_gpt_keeps_its_head_alone() -> None:
    plan = plan_of(workload("gpt", SIZES), "nvfp4-plain")
    kept = {row.layer for row in plan.rows if not row.quantized}
    assert kept == {"lm_head", "layers.0.attention", "layers.1.attention"}  # attention's own products
    assert len(plan.quantized) == 2 * 7 * 3


def test_only_tensors_carry_a_mean() -> None:
    matrix, vector = Layout((32, 16), (16, 1), torch.bfloat16), Layout((16,), (1,), torch.float32)
    rows_as_a_number = Call("carry", (("codes", matrix), ("rows", 32)))
    assert rows_as_a_number.without_mean() == rows_as_a_number
    assert Call("round", (("x", matrix), ("mean", vector))).without_mean()["mean"] is None


def test_arms_share_parameters_and_start_from_the_same_weights() -> None:
    work = workload("block", SIZES)
    runner = Runner(ARMS["eager fake-quantised"], work)
    assert {id(p) for p in runner.model.parameters()} == {id(p) for p in work.model.parameters()}
    again = workload("block", SIZES)
    assert all((a == b).all() for a, b in zip(work.model.parameters(), again.model.parameters(), strict=True))


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    found = memory(Setting(SIZES, threads=1), "block", "eager bf16")
    assert found["saved_bytes"] > 0
    assert found["peak_bytes"] is None or found["peak_bytes"] > found["saved_bytes"] // 2


def test_every_recipe_that_quantises_has_an_arm() -> None:
    assert {f"spectral {recipe}" for recipe in quantizing_recipes()} <= set(bench_arms.chosen("all"))
    assert "spectral identity" not in bench_arms.chosen("all")
    assert f"spectral {DEFAULT_RECIPE}" in bench_arms.chosen("default")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--arms nonsense", "no arm 'nonsense'"),
        ("--baseline nonsense", "no arm 'nonsense'"),
        ("--stage-recipe nonsense", "no arm 'spectral nonsense'"),
        ("--models nonsense", "no model 'nonsense'"),
        ("--parts nonsense", "no part 'nonsense'"),
        ("--block width=3", "'width=3' is not <size>=<number>"),
        ("--rounds 0", "rounds and threads are at least 1"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(shlex.split(arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
