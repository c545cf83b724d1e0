"""What tracking a singular subspace costs: a warm step against its two matrix products, taking turns.

    python -m benchmarks.subspace [--rows 1024] [--cols 2816] [--k 16] [--rounds 60] [--threads 1]

The products alone are the floor, in the forms that are fastest here; as the formulas have them, BLAS is slower. Ratios
are of two times of one round; their median and quartiles are printed. Beside them, what else one might do:
`svd_lowrank`, and an optimizer's whole step.
"""

import argparse
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.bench_timing import Spread, kernel_times, paired_ratio
from spectral_compile.optim import Spectra
from spectral_compile.optim.subspace import orthonormal, power_step, start

FLOOR = "its two products"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--cols", type=int, default=2816)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--muon", action="store_true", help="time torch.optim.Muon's step too: seconds a call on a CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    M = torch.randn(arguments.rows, arguments.cols)
    times = kernel_times(calls(M, arguments.k, arguments.muon), arguments.rounds)
    table = Table(title=f"[{arguments.rows}, {arguments.cols}] fp32, k = {arguments.k}, {arguments.threads} threads")
    for heading in ("", "ms, median", "quartiles", f"x {FLOOR}", "quartiles"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, seconds in times.items():
        spread, ratio = Spread.of([1e3 * s for s in seconds]), paired_ratio(seconds, times[FLOOR])
        table.add_row(
            *(name, f"{spread.median:.2f}", f"{spread.low:.2f}-{spread.high:.2f}"),
            *(f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"),
        )
    Console(width=120).print(table)


def calls(M: Tensor, k: int, muon: bool) -> dict[str, Callable[[], object]]:
    V = start(M, k)
    U = power_step(M, V).U
    found: dict[str, Callable[[], object]] = {
        FLOOR: lambda: (M @ V, U.mT @ M),
        "the same as M V, M' U": lambda: (M @ V, M.mT @ U),
        "warm step": lambda: power_step(M, V),
        "... of it, orthonormal": lambda: orthonormal(U),
        "svd_lowrank, niter 2": lambda: torch.svd_lowrank(M, k, niter=2),
        "Spectra's step": stepping(Spectra, M, rank=k / min(M.shape)),
        "AdamW's step": stepping(torch.optim.AdamW, M),
    }
    if muon:
        found["Muon's step"] = stepping(torch.optim.Muon, M)
    return found


def stepping(kind: Callable[..., torch.optim.Optimizer], M: Tensor, **settings: float) -> Callable[[], object]:
    parameter = nn.Parameter(M.clone())
    parameter.grad = torch.randn_like(M)
    return kind([parameter], **settings).step


if __name__ == "__main__":
    main()
