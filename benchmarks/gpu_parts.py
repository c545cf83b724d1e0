"""What `benchmarks.gpu` measures: each part returns data for the record. What fails is an entry that says why."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_arms import ARMS, BASELINE, Runner
from benchmarks.bench_errors import reason
from benchmarks.bench_models import BlockSizes, GPTSizes, Sizes, Workload, workload
from benchmarks.gpu_timing import Call, in_turns, summary
from spectral_compile.formats import FORMATS
from spectral_compile.lowering.carrier import CARRIERS, capability_of, choose_carrier, why_not

SHAPES = ((4096, 4096, 4096), (8192, 4096, 14336), (16, 4096, 4096), (64, 14336, 4096))
CUBLAS = "cuBLAS bf16"
STEP_ARMS = (BASELINE, "spectral nvfp4", "spectral averis", "spectral mxfp4")
SIZES = Sizes(
    BlockSizes(dim=4096, ff=14336, heads=32, batch=4, length=2048),
    GPTSizes(dim=1024, layers=12, heads=16, batch=8, length=1024),
)

Quantized = tuple[Tensor, Tensor, Tensor]


def quantize(x: Tensor, format: str, axis: int = 1, square: bool = False) -> Quantized:
    kind = FORMATS[format]
    how = (format, kind.scales[0], axis, kind.block if square else 1, False, 0)
    result: Quantized = torch.ops.spectral.quantize(x, None, None, None, *how)
    return result


def product(a: Quantized, b: Quantized, shape: tuple[int, int, int], k_last: bool, format: str, carrier: str) -> Tensor:
    """A [m, k] times B, which lies [n, k], or [k, n] where not k_last."""
    how = (*shape, True, k_last, format, format, carrier, torch.bfloat16)
    result: Tensor = torch.ops.spectral.scaled_mm(*a, *b, None, None, *how)
    return result


def products(rounds: int) -> list[dict[str, Any]]:
    """By shape: each format on each carrier that the device has, alone and with both operands' quantisation."""
    return [_products(shape, rounds) for shape in SHAPES]


def _products(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    m, n, k = shape
    x, w = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for rows in (m, n))
    calls: dict[str, Call] = {CUBLAS: lambda: x @ w.t()}
    failed: dict[str, str] = {}
    for format, carrier in _carried(x.device):
        for name, call in _arms(x, w, shape, format, carrier).items():
            _try(name, call, calls, failed)
    return {"shape": shape, "flop": 2 * m * n * k, "arms": summary(in_turns(calls, rounds), CUBLAS), "failed": failed}


def _arms(x: Tensor, w: Tensor, shape: tuple[int, int, int], format: str, carrier: str) -> dict[str, Call]:
    a, b = quantize(x, format), quantize(w, format, square=True)
    turned = quantize(w.t().contiguous(), format, square=True)
    rows = quantize(w, format)
    name = f"{format} {carrier}"
    return {
        f"{name}, fprop": lambda: product(a, b, shape, True, format, carrier),
        f"{name}, dgrad": lambda: product(a, turned, shape, False, format, carrier),
        f"{name}, wgrad": lambda: product(a, rows, shape, True, format, carrier),
        f"{name}, fprop and quantising": lambda: product(
            quantize(x, format), quantize(w, format, square=True), shape, True, format, carrier
        ),
    }


def _carried(device: torch.device) -> list[tuple[str, str]]:
    """Formats and carriers of this device, but for fp32, which is the reference."""
    capability = capability_of(device)
    return [
        (format, carrier)
        for format in FORMATS
        for carrier in CARRIERS
        if carrier != "fp32" and not why_not(carrier, (format, format), device.type, capability)
    ]


def _try(name: str, call: Call, calls: dict[str, Call], failed: dict[str, str]) -> None:
    try:
        call()
        torch.cuda.synchronize()
        calls[name] = call
    except Exception as error:
        failed[name] = reason(error)


def quantise(rounds: int) -> dict[str, Any]:
    """Each quantiser's bytes read and written a second, as a share of a copy's, of bf16 [8192, 4096]."""
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    to, seed = torch.empty_like(x), torch.zeros((), dtype=torch.int64, device="cuda")
    mean = torch.randn(4096, device="cuda")
    calls: dict[str, Call] = {"copy": lambda: to.copy_(x)}
    bytes_moved = {"copy": 2 * x.nbytes}
    failed: dict[str, str] = {}

    def add(name: str, reads: int, call: Callable[[], tuple[Tensor, ...]]) -> None:
        _try(name, call, calls, failed)
        if name in calls:
            bytes_moved[name] = reads * x.nbytes + sum(result.nbytes for result in call())

    for format, kind in FORMATS.items():
        reads = 1 if kind.tensor_scale is None else 2  # the largest magnitude first
        for what, given in {
            "rows": (None, None, None, 1, False),
            "columns": (None, None, None, 0, False),
            "columns, stochastic, mean": (mean, None, seed, 0, False),
            "columns, Hadamard": (None, None, None, 0, True),
        }.items():
            *first, axis, hadamard = given
            how = (x, *first, format, kind.scales[0], axis, 1, hadamard, 0)
            add(f"{format} {what}", reads, lambda how=how: torch.ops.spectral.quantize(*how))  # type: ignore[misc]
        if hasattr(torch.ops.spectral, "quantize_pair"):
            one = (None, None, None, format, kind.scales[0], 1, False, 0, None)
            add(f"{format} pair", reads, lambda one=one: torch.ops.spectral.quantize_pair(x, *one, *one))  # type: ignore[misc]
    taken = summary(in_turns(calls, rounds), "copy")
    copied = bytes_moved["copy"] / taken["copy"]["seconds"]["median"]
    for name, row in taken.items():
        row["bytes_per_second"] = bytes_moved[name] / row["seconds"]["median"]
        row["share_of_copy"] = row["bytes_per_second"] / copied
    return {"arms": taken, "failed": failed}


def fp8_error(rounds: int) -> dict[str, Any]:
    """The carrier "fp8" by K: its error relative to fp64, beside that of bf16; and how many blocks it lost."""
    device = torch.device("cuda", torch.cuda.current_device())
    if why_not("fp8", ("mxfp4", "mxfp4"), "cuda", capability_of(device)):
        return {"failed": "this device has no FP8 units"}
    from spectral_compile.lowering.triton.multiply import lost_blocks

    before, rows = int(lost_blocks(device)), []
    for k in (512, 2048, 8192, 32768, 131072):
        a, b = (quantize(torch.randn(256, k, device=device), "mxfp4") for _ in range(2))
        values = (torch.ops.spectral.dequantize(*x, "mxfp4", 256, k).double() for x in (a, b))
        exact = next(values) @ next(values).t()
        row: dict[str, Any] = {"k": k}
        for carrier in ("fp8", "bf16"):
            how = (256, 256, k, True, True, "mxfp4", "mxfp4", carrier, torch.float32)
            got = torch.ops.spectral.scaled_mm(*a, *b, None, None, *how).double()
            row[carrier] = float((got - exact).norm() / exact.norm())
        rows.append(row)
    return {"rows": rows, "lost_blocks": int(lost_blocks(device)) - before}


def steps(rounds: int) -> dict[str, Any]:
    """Training steps of a Llama block and of a GPT, and the most memory that a step takes beyond what was there."""
    record: dict[str, Any] = {"sizes": dataclasses.asdict(SIZES)}
    for name in ("block", "gpt"):
        work = _on_gpu(workload(name, SIZES))
        calls: dict[str, Call] = {}
        failed: dict[str, str] = {}
        peaks: dict[str, int] = {}
        for arm in STEP_ARMS:
            try:
                runner = Runner(ARMS[arm], work)
                for _ in range(2):
                    runner.step()
                peaks[arm] = _peak(runner)
                calls[arm] = runner.step
            except Exception as error:
                failed[arm] = reason(error)
        arms = summary(in_turns(calls, rounds, repeat=2), BASELINE) if BASELINE in calls else {}
        for arm, row in arms.items():
            row["peak_bytes"] = peaks[arm]
        device = torch.device("cuda", torch.cuda.current_device())
        carriers = {f: choose_carrier(device, torch.bfloat16, (f, f), "auto", capability_of(device)) for f in FORMATS}
        record[name] = {"tokens": work.tokens(), "carriers": carriers, "arms": arms, "failed": failed}
        del work, calls
        gc.collect()
        torch.cuda.empty_cache()
    return record


def _on_gpu(work: Workload) -> Workload:
    inputs = tuple(x.detach().cuda().requires_grad_(x.requires_grad) for x in work.inputs)
    gradient = None if work.gradient is None else work.gradient.cuda()
    return Workload(work.name, work.model.cuda(), inputs, gradient)


def _peak(runner: Runner) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
