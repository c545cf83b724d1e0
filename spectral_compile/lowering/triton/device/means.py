"""Column means, with the rows that are not all zero told apart, and the largest magnitude once the mean is taken out:
one read of the matrix, then passes over what it left. No atomics: the same bits on every run.
"""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.device.tiles import indices, to_fp32


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sum_chunks(
    x,
    rows,
    cols,
    row_stride,
    col_stride,
    sums,
    least,
    largest,
    nonzeros,
    row_has_nonzero,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Of each chunk of TILES * ROWS rows of x [rows, cols], what is asked for (not None), [chunks, cols]: sums, fp32;
    the least and the largest element; where nonzeros is asked for, of the elements that are not zero, and how many
    those are (int32). row_has_nonzero [tiles across, rows], int8, is asked for with it.

    A chunk's sum is short enough for fp32, lane by lane of the tile, then over the lanes.
    """
    across = tl.cdiv(cols, COLS)
    program = tl.program_id(0)
    chunk = (program // across).to(tl.int64)
    strip = (program % across).to(tl.int64)
    c = indices(strip * COLS, COLS)[None, :]
    total = tl.zeros([ROWS, COLS], tl.float32)
    low = total + float("inf")
    high = total - float("inf")
    count = tl.zeros([ROWS, COLS], tl.int32)
    first_row = chunk * (TILES * ROWS)
    for first in range(first_row, tl.minimum(first_row + TILES * ROWS, rows), ROWS):
        r = indices(first, ROWS)
        inside = (r < rows)[:, None] & (c < cols)
        v = to_fp32(tl.load(x + r[:, None] * row_stride + c * col_stride, mask=inside, other=0.0))
        total += v
        counted = inside
        if nonzeros is not None:
            counted = v != 0.0  # NaN is not zero, what lies outside is
            count += counted.to(tl.int32)
            any_in_row = tl.max(counted.to(tl.int32), axis=1)
            tl.store(row_has_nonzero + strip * rows + r, any_in_row.to(tl.int8), mask=r < rows)
        if least is not None:
            low = _smaller(low, tl.where(counted, v, float("inf")))
            high = _larger(high, tl.where(counted, v, -float("inf")))
    at = chunk * cols + indices(strip * COLS, COLS)
    of_strip = indices(strip * COLS, COLS) < cols
    tl.store(sums + at, tl.sum(total, axis=0), mask=of_strip)
    if least is not None:
        tl.store(least + at, tl.reduce(low, 0, _smaller), mask=of_strip)
        tl.store(largest + at, tl.reduce(high, 0, _larger), mask=of_strip)
    if nonzeros is not None:
        tl.store(nonzeros + at, tl.sum(count, axis=0), mask=of_strip)


@triton.jit(do_not_specialize=["rows", "strips"])
def count_rows(row_has_nonzero, rows, strips, counting, counts, ROWS: tl.constexpr):
    """counting [rows], fp32: 1 where any strip of row_has_nonzero [strips, rows] is, else 0. counts [programs], int32:
    how many of a program's ROWS rows those are.
    """
    r = indices(tl.program_id(0).to(tl.int64) * ROWS, ROWS)
    found = tl.zeros([ROWS], tl.int32)
    at = r
    for _ in range(strips):
        found = tl.maximum(found, tl.load(row_has_nonzero + at, mask=r < rows, other=0).to(tl.int32))
        at += rows
    tl.store(counting + r, found.to(tl.float32), mask=r < rows)
    tl.store(counts + tl.program_id(0), tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["chunks", "count_programs", "rows", "cols", "min_rows"])
def finish_means(
    sums,
    least,
    largest,
    nonzeros,
    chunks,
    counts,
    count_programs,
    rows,
    cols,
    min_rows,
    mean,
    total,
    common,
    partials,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """mean [cols] over the rows that count, zeros where those are fewer than min_rows: all rows, or counts
    [count_programs] together. Further, where not None, what `ops.token_mean` calls total and common; and partials
    [1 or 2, programs]: the bits of the largest magnitude less the mean in rows that count, and less the common mean.
    """
    c = indices(tl.program_id(0).to(tl.int64) * COLS, COLS)
    inside = c < cols
    exact = tl.zeros([COLS], tl.float64)  # chunk by chunk, in order
    low = tl.zeros([COLS], tl.float32) + float("inf")
    high = tl.zeros([COLS], tl.float32) - float("inf")
    nonzero = tl.zeros([COLS], tl.int32)
    at = c
    for _ in range(chunks):
        exact += tl.load(sums + at, mask=inside, other=0.0).to(tl.float64)
        if partials is not None:
            low = _smaller(low, tl.load(least + at, mask=inside, other=0.0))
            high = _larger(high, tl.load(largest + at, mask=inside, other=0.0))
            if nonzeros is not None:
                nonzero += tl.load(nonzeros + at, mask=inside, other=0)
        at += cols
    count = rows if counts is None else _sum(counts, count_programs, BLOCK)
    divisor = tl.maximum(count, 1).to(tl.float64)
    of_counted = tl.where(count >= min_rows, exact / divisor, 0.0).to(tl.float32)
    of_all = tl.where(count == rows, of_counted, 0.0)
    tl.store(mean + c, of_counted, mask=inside)
    if total is not None:
        tl.store(total + c, exact.to(tl.float32), mask=inside)
    if common is not None:
        tl.store(common + c, of_all, mask=inside)

    if partials is not None:
        if nonzeros is not None:
            # Zeros were left out, but in the rows that count they are elements like others; without any row, the only.
            has_zero = (nonzero < count) | (nonzero == 0)
            low = tl.where(has_zero, _smaller(low, 0.0), low)
            high = tl.where(has_zero, _larger(high, 0.0), high)
        program = tl.program_id(0)
        tl.store(partials + program, _farthest(low, high, of_counted, inside))
        if common is not None:
            tl.store(partials + tl.num_programs(0) + program, _farthest(low, high, of_all, inside))


@triton.jit
def _farthest(low, high, mean, inside):
    """The bits of the largest |x - mean| over columns whose elements lie between low and high: subtraction is
    monotone, also once rounded.
    """
    below = tl.abs(low - mean).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    above = tl.abs(high - mean).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.where(inside, tl.maximum(below, above), 0), axis=0)


@triton.jit
def _sum(counts, programs, BLOCK: tl.constexpr):
    """Of counts [programs], int32."""
    partial = tl.zeros([BLOCK], tl.int32)
    for first in range(0, programs, BLOCK):
        i = first + tl.arange(0, BLOCK)
        partial += tl.load(counts + i, mask=i < programs, other=0)
    return tl.sum(partial, axis=0)
