"""What each CPU kernel costs, in units of a copy of as many bytes as the kernel reads, from cache.

    python benchmarks/quantize_cpu.py [--rows 2048] [--cols 4096] [--rounds 40] [--threads 2]

A kernel and its copy take turns, so that a busy machine slows both. Where others compete for the cores, threads wait
for each other: compare the best times, or measure with one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spectral_compile.formats import FORMATS
from spectral_compile.lowering import cpu
from spectral_compile.ops.library import planned

spectral = torch.ops.spectral
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


# Name, axis (1: features, which are contiguous; 0: tokens), format, scale rule, tile_rows; what else is asked for.
QUANTISERS = (
    ("NVFP4 along features", 1, "nvfp4", "amax", 1, ()),
    ("... centred", 1, "nvfp4", "amax", 1, ("centred",)),
    ("... stochastic, centred", 1, "nvfp4", "amax", 1, ("centred", "stochastic")),
    ("... four_six", 1, "nvfp4", "four_six", 1, ()),
    ("... 16 x 16", 1, "nvfp4", "amax", 16, ()),
    ("... 16 x 16, four_six", 1, "nvfp4", "four_six", 16, ()),
    ("NVFP4 along tokens", 0, "nvfp4", "amax", 1, ()),
    ("... stochastic, centred", 0, "nvfp4", "amax", 1, ("centred", "stochastic")),
    ("... four_six", 0, "nvfp4", "four_six", 1, ()),
    ("... Hadamard", 0, "nvfp4", "amax", 1, ("hadamard",)),
    ("... Hadamard, stochastic, centred", 0, "nvfp4", "amax", 1, ("hadamard", "centred", "stochastic")),
    ("MXFP4 along features", 1, "mxfp4", "floor", 1, ()),
    ("... stochastic, centred", 1, "mxfp4", "floor", 1, ("centred", "stochastic")),
    ("... 32 x 32", 1, "mxfp4", "floor", 32, ()),
    ("MXFP4 along tokens", 0, "mxfp4", "floor", 1, ()),
    ("... stochastic, centred", 0, "mxfp4", "floor", 1, ("centred", "stochastic")),
    ("... Hadamard, stochastic, centred", 0, "mxfp4", "floor", 1, ("hadamard", "centred", "stochastic")),
)


def cases(x: Tensor) -> Iterator[tuple[str, int, Thunk]]:
    """Name, bytes read and call of each kernel, on x [tokens, features]; results go where Inductor would have them."""
    mean, rows, seed = x.float().mean(0), torch.ones(x.shape[0]), torch.tensor([1])
    for name, axis, format, scale, tile_rows, extras in QUANTISERS:
        centre = (mean, rows) if "centred" in extras else (None, None)
        key = seed if "stochastic" in extras else None
        arguments = (x, *centre, key, format, scale, axis, tile_rows, "hadamard" in extras, 1)
        yield f"{name}: codes", x.nbytes, _in_place(spectral.quantize, *arguments)
        yield f"{name}: values", x.nbytes, _in_place(spectral.round, *arguments, torch.bfloat16)
    yield "largest magnitude", x.nbytes, lambda: spectral.amax(x, None, None)
    for operator in (spectral.token_mean_amax, spectral.token_mean_nonzero_amax):
        yield str(operator).removeprefix("spectral."), x.nbytes, _in_place(operator, x, 2)
    for format in ("nvfp4", "mxfp4"):
        codes, scales, _ = spectral.quantize(x, None, None, None, format, FORMATS[format].scales[0], 1, 1, False, 0)
        # Reads a quarter of what it writes: compared with a copy of what it writes.
        yield f"{format} codes to bf16", x.nbytes, _in_place(spectral.carry, codes, scales, format, *x.shape, x.dtype)


def _in_place(operator: Any, *arguments: Any) -> Thunk:
    """The operator, writing into the tensors that a first call returned."""
    results = operator(*arguments)
    operator = planned(operator.default).overloadpacket
    if isinstance(results, Tensor):
        return lambda: operator.out(*arguments, out=results)
    named = {f"out{i}": result for i, result in enumerate(results)}
    return lambda: operator.out(*arguments, **named)


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
