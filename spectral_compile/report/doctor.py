"""`doctor`: what this machine has for four-bit training, what would be used, and what would be missing for more."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from rich.markup import escape
from rich.table import Table

from spectral_compile import config
from spectral_compile._torch import cpu_multiplies_bf16
from spectral_compile.lowering import cpu, gpu
from spectral_compile.lowering.carrier import AUTO, Capability, architecture, choose_carrier

Verdict = Literal["ok", "missing", "note"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is there, and what that means for the user."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything; builds the CPU kernels where they are not built yet."""
    return [*_versions(), *_backend(), *_compilers(), *_devices(), *_environment()]


def table(findings: list[Finding]) -> Table:
    """For a terminal."""
    shown = Table(title="spectral_compile on this machine", show_lines=False)
    for heading in ("", "what", "found", "what to do"):
        shown.add_column(heading)
    marks = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "note": "[yellow]note[/]"}
    for finding in findings:
        shown.add_row(marks[finding.verdict], *map(escape, (finding.what, finding.found, finding.advice)))
    return shown


def _versions() -> Iterator[Finding]:
    try:
        yield Finding("spectral_compile", "ok", importlib.metadata.version("spectral-compile"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("spectral_compile", "missing", "not installed", "pip install -e . in the checkout")
    yield Finding("Python", "ok", platform.python_version())
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    tested = release >= (2, 11)
    yield Finding("torch", "ok" if tested else "note", torch.__version__, "" if tested else "2.11 and later are tested")
    if release < (2, 13):
        yield Finding("memory of results", "note", "torch < 2.13", "from 2.13 on Inductor reuses our results' memory")


def _backend() -> Iterator[Finding]:
    known = "spectral" in torch.compiler.list_backends(exclude_tags=())
    advice = "" if known else "install the package (pip install -e .): an entry point makes the backend known"
    yield Finding('backend="spectral"', "ok" if known else "missing", "known" if known else "unknown", advice)


def _compilers() -> Iterator[Finding]:
    begin = time.perf_counter()
    try:
        cpu.prepare()
    except cpu.NoCompilerError as error:
        yield Finding("CPU kernels", "missing", "no C++ compiler", str(error))
        return
    seconds = time.perf_counter() - begin
    yield Finding("CPU kernels", "ok", f"built, in {seconds:.0f} s" if seconds > 1 else "built before, loaded")


def _devices() -> Iterator[Finding]:
    has_bf16 = cpu_multiplies_bf16()
    advice = "" if has_bf16 else "no AMX or AVX512-BF16: bf16 products are slow here, fp32 ones are used"
    yield Finding("CPU", "ok" if has_bf16 else "note", _carriers(torch.device("cpu"), None), advice)
    if not torch.cuda.is_available():
        yield Finding("GPU", "note", "none", "four-bit training is emulated exactly on the CPU")
        return
    kernels = gpu.has_triton()
    without = "" if kernels else "pip install triton: until then operators run as plain torch, slowly"
    yield Finding("GPU kernels", "ok" if kernels else "missing", "Triton" if kernels else "no Triton", without)
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        capability = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} ({architecture(capability)})"
        yield Finding(f"GPU {index}", "ok", f"{name}: {_carriers(device, capability)}")


def _carriers(device: torch.device, capability: Capability | None) -> str:
    """What a bf16 model's products would run on."""
    found = {
        name: choose_carrier(device, torch.bfloat16, (name, name), AUTO, capability) for name in ("nvfp4", "mxfp4")
    }
    if len(set(found.values())) == 1:
        return f"bf16 models multiply in {found['nvfp4']}"
    return "bf16 models multiply " + ", ".join(f"{name} in {carrier}" for name, carrier in found.items())


def _environment() -> Iterator[Finding]:
    disabled = config.disabled_by_environment()
    if disabled:
        yield Finding("SPECTRAL_DISABLE", "note", ", ".join(disabled), "unset it to train in four bits")
