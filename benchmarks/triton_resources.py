"""What the Triton kernels take on each GPU generation: registers, spills, shared memory. No GPU is needed.

python -m benchmarks.triton_resources [architecture ...]
"""

import sys

from rich.console import Console
from rich.table import Table

from tests.lowering.triton.launches import LAUNCHES, compiled
from tests.lowering.triton.targets import ARCHITECTURES


def main() -> None:
    architectures = [int(a) for a in sys.argv[1:]] or ARCHITECTURES
    table = Table("kernel, as launched for", "warps", *(f"sm_{a}" for a in architectures))
    for name, launch in LAUNCHES.items():
        results = [compiled(name, a) for a in architectures]
        cells = [f"{r.registers} registers, {r.spilled} B spilled, {r.shared} B shared" for r in results]
        table.add_row(name, str(launch.warps), *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
