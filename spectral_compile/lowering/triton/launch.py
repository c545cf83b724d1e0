"""Launching the kernels: tiles and warps, what they take of a tensor, and options that keep numbers exact."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """What a program works on, [rows, groups * 16] elements, and how many warps do."""

    rows: int
    groups: int
    warps: int

    def count(self, x: Tensor) -> int:
        return -(-x.shape[0] // self.rows) * -(-x.shape[1] // (self.groups * 16))


# 64 elements a thread: enough loads in flight at three or four blocks of four warps a multiprocessor (120 to 170
# registers). Whole lines are read, half lines of codes written along rows, a sector of them down columns. What takes
# more registers has half as many elements a thread.
QUANTIZE = Tile(64, 8, 4)
QUANTIZE_HEAVY = Tile(64, 8, 8)
AMAX = Tile(64, 8, 4)
CENTER = Tile(32, 8, 4)
VALUES = Tile(32, 16, 4)

AMAX_PROGRAMS = 1024  # several a multiprocessor; as many partial maxima are searched in one go
MEAN = Tile(16, 8, 4)
MEAN_TILES = 16  # a chunk of rows is so many tiles: short sums, and programs enough for a large device
COUNT_ROWS = 1024
FINISH = 128  # columns a program, when chunks are summed
SEARCH = 1024


def launch(kernel: Any, programs: int, warps: int, *arguments: Any, **constants: Any) -> None:
    """Run `kernel` on the device of its first argument. No multiply-add is fused: that would change codes."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def matrix(x: Tensor) -> tuple[Any, ...]:
    """x [M, K] as kernels take it: in any layout."""
    return (x, *x.shape, *x.stride())


def lies_transposed(x: Tensor) -> bool:
    """Whether x is contiguous down its columns: then kernels that read along rows are given x.t()."""
    return x.stride(0) == 1 and x.stride(1) != 1


def factors(x: Tensor, mean: Tensor | None, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What rows (outer) mean, taken out of x, are called where x may be given transposed."""
    if mean is None or not lies_transposed(x):
        return fp32(mean), None if mean is None else fp32(rows)
    return fp32(x.new_ones(x.shape[0]) if rows is None else rows), fp32(mean)


def fp32(t: Tensor | None) -> Tensor | None:
    """Contiguous fp32, as vectors are read."""
    return None if t is None else t.to(torch.float32).contiguous()
