"""Which carrier is chosen, for GPUs that are not here too, and what is said of an impossible one."""

import pytest
import torch
from torch import nn

from spectral_compile import pipeline, planner
from spectral_compile.config import Options
from spectral_compile.graph.facts import GraphFacts
from spectral_compile.lowering import carrier
from spectral_compile.lowering.carrier import check_carrier, choose_carrier
from spectral_compile.pipeline import PassManager
from spectral_compile.recipes import Operand, QuantizeFP4
from spectral_compile.scopes import Scopes
from tests.capture import capture

GPU = torch.device("cuda", 0)
NVFP4, MXFP4, MIXED, IDENTITY = ("nvfp4",) * 2, ("mxfp4",) * 2, ("nvfp4", "mxfp4"), ("identity", "nvfp4")


@pytest.mark.parametrize(
    ("capability", "nvfp4", "mxfp4", "mixed"),
    [
        ((8, 0), "bf16", "bf16", "bf16"),
        ((8, 9), "bf16", "fp8", "bf16"),
        ((9, 0), "bf16", "fp8", "bf16"),
        ((10, 0), "native", "native", "bf16"),
        ((10, 3), "native", "native", "bf16"),
        ((12, 0), "native", "native", "bf16"),
        ((12, 1), "native", "native", "bf16"),
    ],
)
def test_what_a_gpu_has_is_used(capability: tuple[int, int], nvfp4: str, mxfp4: str, mixed: str) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        found = [choose_carrier(GPU, dtype, formats, "auto", capability) for formats in (NVFP4, MXFP4, MIXED)]
        assert found == [nvfp4, mxfp4, mixed]
        assert choose_carrier(GPU, dtype, IDENTITY, "auto", capability) == "fp32"


@pytest.mark.parametrize("asked", carrier.CARRIERS)
def test_what_is_asked_is_done_where_it_can_be(asked: str) -> None:
    assert choose_carrier(GPU, torch.bfloat16, MXFP4, asked, (12, 0)) == asked
    assert choose_carrier(GPU, torch.bfloat16, IDENTITY, asked, (12, 0)) == "fp32"


@pytest.mark.parametrize(
    ("asked", "formats", "where", "reason"),
    [
        (
            "native",
            NVFP4,
            (9, 0),
            "sm_90 has no FP4 units, which came with Blackwell; it can be 'auto', 'bf16', 'fp32'",
        ),
        (
            "native",
            MXFP4,
            (9, 0),
            "sm_90 has no FP4 units, which came with Blackwell; it can be 'auto', 'fp8', 'bf16',",
        ),
        ("native", MIXED, (10, 0), "FP4 units multiply operands of one format, not nvfp4 by mxfp4"),
        ("fp8", NVFP4, (9, 0), "scales are powers of two, as mxfp4's are and nvfp4's are not"),
        ("fp8", MXFP4, (8, 0), "sm_80 has no FP8 units, which came with Ada and Hopper"),
        ("fp8", MXFP4, None, "it is arithmetic of NVIDIA GPUs, and the model is on 'cpu'"),
    ],
)
def test_an_impossible_choice_says_why_and_what_there_is(
    asked: str, formats: tuple[str, str], where: tuple[int, int] | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"option 'carrier' cannot be '{asked}' here: .*{reason}"):
        check_carrier(asked, formats, "cpu" if where is None else "cuda", where)


@pytest.mark.parametrize("asked", ["native", "fp8"])
def test_a_user_is_told_before_anything_is_compiled(asked: str) -> None:
    with pytest.raises(ValueError, match=f"'carrier' cannot be '{asked}' here: .* the model is on 'cpu'; it can be"):
        capture(nn.Linear(32, 16), torch.randn(64, 32), recipe="mxfp4", carrier=asked)


def test_a_carrier_is_only_checked_for_what_is_quantised() -> None:
    weights = Operand(format="identity")
    captured = capture(nn.Linear(32, 16), torch.randn(64, 32), recipe="none", carrier="native")
    assert not captured.plans or not captured.plan.quantized
    mixed = [QuantizeFP4(format="mxfp4", weights=weights)]
    with pytest.raises(ValueError, match="'carrier' cannot be 'fp8' here"):  # wgrad multiplies no weight
        capture(nn.Linear(32, 16), torch.randn(64, 32), passes=mixed, carrier="fp8")


def test_the_plan_shows_the_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "choose_carrier", lambda *_: "native")
    row = capture(nn.Linear(32, 16), torch.randn(64, 32), recipe="nvfp4-plain").plan.rows[0]
    assert row.carrier == "native"
    assert row.cells()[-1].endswith("carried in native")


def test_gpus_are_part_of_the_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for found in ((), ((9, 0),), ((10, 0),)):
        monkeypatch.setattr(pipeline, "capabilities", lambda found=found: found)
        keys.add(PassManager(GraphFacts((), (), True), Scopes(Options())).uuid())
    assert len(keys) == 3
