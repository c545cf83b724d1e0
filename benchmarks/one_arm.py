"""One arm alone in a fresh process: its memory, or how long it compiles. `bench_processes` starts it.

    python -m benchmarks.one_arm '{"task": "memory", "model": "block", "arm": "inductor bf16", ...}'

The last line on stdout is a JSON object; {"failed": why} where the arm does not work.

Peak memory is the most that the process held during a step beyond what it held before, so it leaves out parameters,
inputs and compiled code. The kernel keeps count (VmHWM in /proc/self/status) and starts anew when asked. What malloc
keeps for itself after a tensor is freed would count as held; so it is told, by its environment, to keep nothing.
"""

import ctypes
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_arms import ARMS, Runner
from benchmarks.bench_errors import reason
from benchmarks.bench_models import BlockSizes, GPTSizes, Sizes, workload
from spectral_compile.lowering import cpu
from spectral_compile.report.saved import saved_bytes


def main() -> None:
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    try:
        result = TASKS[request["task"]](request)
    except Exception as error:
        result = {"failed": reason(error)}
    print(json.dumps(result))


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """Bytes: saved by the forward for the backward, and the peak of a step (None where the system does not tell)."""
    runner = _runner(request)
    for _ in range(2):
        runner.step()
    saved = saved_bytes(runner.forward, leave_out=[runner.workload.model, *runner.workload.inputs])
    return {"saved_bytes": saved, "peak_bytes": _peak_of_step(runner)}


def compile_time(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds by which the first step takes longer than the second."""
    runner = _runner(request)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        runner.step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": max(0.0, seconds[0] - seconds[1])}


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Fill the caches with what is made once a machine, so that no model's compile time has it in.

    Seconds: of Inductor's probe of vector instructions and precompiled headers, and of the C++ kernels of ours.
    """
    start = time.perf_counter()
    torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    between = time.perf_counter()
    cpu.prepare()
    return {"inductor_seconds": between - start, "kernels_seconds": time.perf_counter() - between}


TASKS = {"memory": memory, "compile": compile_time, "prepare": prepare}


def _runner(request: dict[str, Any]) -> Runner:
    sizes = Sizes(BlockSizes(**request["sizes"]["block"]), GPTSizes(**request["sizes"]["gpt"]))
    return Runner(ARMS[request["arm"]], workload(request["model"], sizes), request["codegen"])


def _peak_of_step(runner: Runner) -> int | None:
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5\n")
    before = _bytes(status, "VmRSS")
    runner.step()
    return _bytes(status, "VmHWM") - before


def _bytes(status: Path, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
