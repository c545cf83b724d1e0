"""Compiling Triton kernels for GPUs that are not here: what instructions they become, and what they take."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia import compiler as nvidia  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

ARCHITECTURES = (80, 89, 90, 100, 120)


@dataclass(frozen=True)
class Compiled:
    """ptx: the assembly. registers: of a thread. spilled: bytes of its stack, which nothing but spills needs. shared:
    bytes a block.
    """

    ptx: str
    registers: int
    spilled: int
    shared: int


def compile_for(
    architecture: int, kernel: Any, arguments: Mapping[str, Any], divisible: tuple[str, ...] = (), **options: Any
) -> Compiled:
    """`kernel` (a `triton.jit` function) for sm_<architecture>.

    arguments: by name, a type as Triton writes it ("*bf16", "i32", "fp32"), None for a tensor that is absent, or a
    value: of a constexpr, or 1, for which a launch compiles apart. divisible: arguments that are multiples of 16, which
    a launch finds out by itself and which decides how memory is read.
    options: num_warps, num_stages and so on.
    """
    names = kernel.arg_names
    constant = {p.name for p in kernel.params if p.is_constexpr or not isinstance(arguments[p.name], str)}
    signature = {name: "constexpr" if name in constant else arguments[name] for name in names}
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(names.index(name),): arguments[name] for name in constant},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    used = _resources(compiled.asm["cubin"])
    return Compiled(compiled.asm["ptx"], used["REG"], max(used["STACK"], used["LOCAL"]), compiled.metadata.shared)


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", printed)}
