"""What each CPU kernel costs, in units of a copy of as many bytes as the kernel reads, from cache.

    python benchmarks/quantize_cpu.py [--rows 2048] [--cols 4096] [--rounds 40] [--threads 2]

A kernel and its copy take turns, so that a busy machine slows both. Where others compete for the cores, threads wait
for each other: compare the best times, or measure with one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spectral_compile.lowering import cpu
from spectral_compile.lowering.cpu import kernels

Thunk = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cpu.prepare()

    table = Table(title=f"[{arguments.rows}, {arguments.cols}] bf16, {arguments.threads} threads, milliseconds")
    table.add_column("kernel", no_wrap=True)
    for heading in ("best", "median", "quartiles", "copy: best", "median", "x copy: best", "median"):
        table.add_column(heading, justify="right")
    x = torch.randn(arguments.rows, arguments.cols, dtype=torch.bfloat16)
    for name, read, kernel in cases(x):
        source, target = torch.ones(read, dtype=torch.uint8), torch.ones(read, dtype=torch.uint8)
        ours, copy = take_turns(kernel, lambda s=source, t=target: t.copy_(s), arguments.rounds)
        low, median, high = statistics.quantiles(ours, n=4)
        table.add_row(
            *(name, f"{min(ours):.2f}", f"{median:.2f}", f"{low:.2f}-{high:.2f}"),
            *(f"{min(copy):.2f}", f"{statistics.median(copy):.2f}"),
            *(f"{min(ours) / min(copy):.1f}", f"{median / statistics.median(copy):.1f}"),
        )
    Console(width=130).print(table)


def cases(x: Tensor) -> Iterator[tuple[str, int, Thunk]]:
    """Name, bytes read and call of each kernel, on x [tokens, features]."""
    mean, rows, seed = x.float().mean(0), torch.ones(x.shape[0]), torch.tensor([1])
    for axis in (1, 0):
        for tile_rows, mu, key, name in (
            (1, None, None, "1 x 16, nearest"),
            (1, mean, None, "1 x 16, nearest, centred"),
            (1, None, seed, "1 x 16, stochastic"),
            (1, mean, seed, "1 x 16, stochastic, centred"),
            (16, None, None, "16 x 16, nearest"),
        ):
            arguments = (x, mu, None if mu is None else rows, key, "nvfp4", axis, tile_rows, 1)
            yield f"quantize axis {axis}, {name}", x.nbytes, lambda a=arguments: kernels.quantize(*a)
    yield "token_mean", x.nbytes, lambda: kernels.token_mean(x, 2)
    yield "token_mean_nonzero", x.nbytes, lambda: kernels.token_mean_nonzero(x, 2)

    codes, scales, _ = kernels.quantize(x, None, None, None, "nvfp4", 1, 1, 0)
    library = kernels.library()
    for dtype in (torch.bfloat16, torch.float32):
        arguments = (library, codes, scales, *x.shape, 1.0, dtype)
        # Reads a quarter of what it writes: compared with a copy of what it writes.
        yield f"values in {dtype}", x.numel() * dtype.itemsize, lambda a=arguments: kernels._values(*a)


def take_turns(first: Thunk, second: Thunk, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each call, after two calls of each that do not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 2):
        for call, into in zip((first, second), times, strict=True):
            begin = time.perf_counter()
            call()
            if turn >= 2:
                into.append(1e3 * (time.perf_counter() - begin))
    return times


if __name__ == "__main__":
    main()
