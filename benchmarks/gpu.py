"""FP4 kernels and training steps on this machine's NVIDIA GPU, against cuBLAS and Inductor in bf16.

    python -m benchmarks.gpu [--parts products,quantise,fp8,steps] [--rounds 20] [--tune]     # or: make gpu

Tables on the terminal, and everything in benchmarks/results/<device>.json. --tune times every configuration in
`lowering/triton/configs.py` first, and writes the fastest into its table.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.bench_arguments import some
from benchmarks.gpu_parts import fp8_error, products, quantise, steps
from benchmarks.gpu_tables import tables
from examples.results import write_json

PARTS: dict[str, Callable[[int], Any]] = {"products": products, "quantise": quantise, "fp8": fp8_error, "steps": steps}
RESULTS = Path(__file__).parent / "results"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    try:
        parts = some(arguments.parts, tuple(PARTS), "part")
    except ValueError as error:
        parser.error(str(error))
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 0

    import triton

    from spectral_compile.lowering import gpu

    device = torch.device("cuda", torch.cuda.current_device())
    gpu.prepare(device)
    name = torch.cuda.get_device_name(device)
    record: dict[str, Any] = {
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": name,
        "capability": torch.cuda.get_device_capability(device),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__},
        "rounds": arguments.rounds,
    }
    if arguments.tune:
        from benchmarks.gpu_tune import tune

        record["tuned"] = tune(arguments.rounds, name)
    path = arguments.out / f"{name.replace(' ', '-')}.json"
    for part in parts:
        print(part, file=sys.stderr, flush=True)
        record[part] = PARTS[part](arguments.rounds)
        write_json(path, record)
    console = Console(width=150)
    for table in tables(record):
        console.print(table)
    console.print(str(path), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
