"""The quantise kernels compiled for every architecture: nothing spills, loads are of 16 bytes, nothing is fused."""

import re
from typing import Any

import pytest
import torch

from spectral_compile.lowering.triton.launch import launch
from tests.lowering.triton.launches import LAUNCHES, compiled
from tests.lowering.triton.targets import ARCHITECTURES, Compiled, compile_for

# One for each configuration, and on one architecture what takes most registers; to compile the rest takes long.
EACH_TILE = ("columns", "weight, four_six", "amax", "sum_chunks", "values", "center")
QUICK = [(architecture, name) for architecture in ARCHITECTURES for name in EACH_TILE] + [(90, "gradient")]
EXACT = {"enable_fp_fusion": False}
ALL = [(architecture, name) for architecture in ARCHITECTURES for name in LAUNCHES]


@pytest.mark.parametrize(("architecture", "name"), QUICK)
def test_a_configuration(architecture: int, name: str) -> None:
    check(name, compiled(name, architecture))


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "name"), ALL)
def test_every_configuration(architecture: int, name: str) -> None:
    check(name, compiled(name, architecture))


def check(name: str, kernel: Compiled) -> None:
    assert kernel.spilled == 0
    assert kernel.registers <= 255
    assert kernel.shared <= 48 * 1024  # several blocks a multiprocessor, on the smallest of them too
    # No division is approximate, and subnormals stay.
    assert not re.search(r"\.ftz|\.approx|div\.full", kernel.ptx)
    if name in FUSED:
        fused = re.findall(r"\bfma\.rn\.f32(x2)?", kernel.ptx)  # Blackwell has instructions for two
        assert sum(2 if x2 else 1 for x2 in fused) == FUSED[name] * 64
    if name not in ("finish_amax", "count_rows", "finish_means", "values", "rows, strided"):
        assert re.search(r"ld\.global[a-z0-9_.:]*\.v4\.b32", kernel.ptx)
        assert not re.search(r"ld\.global[a-z0-9_.:]*\.b16\b", kernel.ptx)
    if LAUNCHES[name].kernel is LAUNCHES["gradient"].kernel:  # codes leave in 8 bytes a group and more
        assert re.search(r"st\.global[a-z0-9_.:]*\.b64", kernel.ptx)


# Multiply-adds that are meant, for each of a thread's 64 elements: two where rounding is to nearest, one where it is
# stochastic.
FUSED = {"activation": 4, "gradient": 2, "weight": 2, "columns": 2, "rows, fp32": 2, "amax": 0}


@pytest.mark.parametrize("name", ["weight", "columns", "amax", "sum_chunks", "values", "center"])
def test_one_element(name: str) -> None:
    """Extents of 1 are constants to Triton, as nothing shows that is interpreted."""
    launch = LAUNCHES[name]
    ones = {k: 1 for k, v in launch.arguments.items() if v == "i32" and not k.endswith("stream")}
    assert compile_for(90, launch.kernel, {**launch.arguments, **ones}, num_warps=launch.warps, **EXACT).spilled == 0


def test_a_launch_fuses_nothing() -> None:
    """Triton's default has changed between releases: it is always said."""
    options: dict[str, Any] = {}

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *arguments, **given: options.update(given)

    launch(Kernel(), 1, 4, torch.zeros(1))
    assert options == {"num_warps": 4, "enable_fp_fusion": False}
