"""The largest magnitude of a matrix: of each program's tiles first, then of those. The same bits on every run."""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.device import hadamard, tiles
from spectral_compile.lowering.triton.device.groups import largest_magnitude_bits, take_apart

_INFINITY = tl.constexpr(0x7F800000)


@triton.jit
def amax_of_tiles(
    x,
    rows,
    cols,
    row_stride,
    col_stride,
    mean,
    counting,
    partials,
    HADAMARD: tl.constexpr,
    DOWN: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """partials [programs], int32: the bits of the largest magnitude of x [rows, cols] less counting (outer) mean in the
    tiles that are a program's, one in `programs`; above those of infinity for NaN. HADAMARD: of x transformed along
    rows or, DOWN, columns.
    """
    across = tl.cdiv(cols, GROUPS * 16)
    count = across * tl.cdiv(rows, ROWS)
    largest = tl.zeros([GROUPS * 16, ROWS // 16] if DOWN else [ROWS, GROUPS], tl.int32)
    for place in range(tl.program_id(0), count, tl.num_programs(0)):
        first_row = (place // across).to(tl.int64) * ROWS
        first_col = (place % across).to(tl.int64) * (GROUPS * 16)
        tile = tiles.read(x, row_stride, col_stride, rows, cols, first_row, first_col, ROWS, GROUPS)
        tile = tiles.center(tile, mean, counting, rows, cols, first_row, first_col, ROWS, GROUPS)
        if DOWN:
            tile = tiles.transpose(tile, ROWS, GROUPS)
            xs = take_apart(tile[0], tile[1], GROUPS * 16, ROWS // 16)
        else:
            xs = take_apart(tile[0], tile[1], ROWS, GROUPS)
        if HADAMARD:
            xs = hadamard.transform(xs)
        largest = tl.maximum(largest, largest_magnitude_bits(xs))
    if HADAMARD:
        largest = hadamard.round_magnitude_bits(largest)  # rounding is monotone: only the largest is rounded
    tl.store(partials + tl.program_id(0), tl.max(tl.max(largest, axis=1), axis=0))


@triton.jit
def finish_amax(partials, count, results, BLOCK: tl.constexpr):
    """results [programs], fp32: the largest of each row of partials [programs, count], magnitudes' bits; NaN where it
    is not finite.
    """
    program = tl.program_id(0)
    largest = tl.zeros([BLOCK], tl.int32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(partials + program * count + i, mask=i < count, other=0))
    bits = tl.max(largest, axis=0)
    tl.store(results + program, tl.where(bits < _INFINITY, bits, 0x7FC00000).to(tl.float32, bitcast=True))
