"""The plan as data and as a table."""

import io
import json

from rich.console import Console

from spectral_compile.plan import GemmPlan, OperandPlan, Plan

ACTIVATION = OperandPlan("activation", "nvfp4", "amax", centered=True)
GRADIENT = OperandPlan("gradient", "nvfp4", "headroom", stochastic=True, stream=7)
WEIGHT = OperandPlan("weight", "nvfp4", "amax", tile_rows=16)
QUANTIZED = GemmPlan(
    *("mm", "layers.0.up", "fprop", "s0", "64", "32", "bfloat16"),
    a=ACTIVATION,
    b=WEIGHT,
    carrier="bf16",
    mean_mode="hp",
    min_rows=32,
)
DGRAD = GemmPlan(
    *("mm_1", "layers.0.up", "dgrad", "s0", "32", "64", "bfloat16"),
    a=GRADIENT,
    b=WEIGHT,
    hadamard=True,
    carrier="fp32",
)
LEFT_ALONE = GemmPlan("mm_2", "lm_head", "fprop", "8", "64", "32", "bfloat16", reason="excluded by 'layers.[a-z]+[/]'")
PLAN = Plan((QUANTIZED, DGRAD, LEFT_ALONE))


def printed(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(plan)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_is_quantised_unless_it_has_a_reason_not_to_be() -> None:
    assert PLAN.quantized == (QUANTIZED, DGRAD)
    assert not LEFT_ALONE.quantized


def test_a_row_is_centred_where_either_operand_is() -> None:
    assert QUANTIZED.centered
    assert GemmPlan(*("mm", "l", "wgrad", "1", "1", "1", "float32"), a=GRADIENT, b=ACTIVATION).centered
    assert not DGRAD.centered
    assert not LEFT_ALONE.centered


def test_as_dict_is_json_and_holds_everything() -> None:
    data = json.loads(json.dumps(PLAN.as_dict()))
    rows = [
        GemmPlan(**{**row, "a": row["a"] and OperandPlan(**row["a"]), "b": row["b"] and OperandPlan(**row["b"])})
        for row in data["rows"]
    ]
    assert Plan(tuple(rows)) == PLAN


def test_the_table_says_what_is_done_to_each_gemm() -> None:
    lines = printed(PLAN).splitlines()
    assert "2 of 3 GEMMs in four bits" in lines[0]
    (fprop,) = [line for line in lines if "fprop" in line and "layers.0.up" in line]
    (dgrad,) = [line for line in lines if "dgrad" in line]
    assert "s0 x 64 x 32" in fprop
    assert "activation (nvfp4 1x16, centred) @ weight (nvfp4 16x16), carried in bf16" in fprop
    assert "gradient (nvfp4 1x16, headroom, stochastic) @ weight (nvfp4 16x16), Hadamard, carried in fp32" in dgrad


def test_the_table_prints_reasons_as_they_are_brackets_included() -> None:
    assert "excluded by 'layers.[a-z]+[/]'" in printed(PLAN)


def test_an_empty_plan_prints() -> None:
    assert "0 of 0 GEMMs" in printed(Plan(()))
