"""A matrix on a GPU, read tile by tile as fp32, perhaps less its mean.

A tile [ROWS, GROUPS * 16] is a pair of tensors [ROWS, GROUPS * 8], the first and the second eight elements of each
group: 16 bytes of bf16 are one load, so both halves of a group are loaded by one thread, which then has all of it.
(With three dimensions, Triton 3.6 would have the threads of a warp load from as many rows.)
"""

import triton
import triton.language as tl


@triton.jit
def indices(first, COUNT: tl.constexpr):
    """first (int64), first + 1 and so on. Tensors may have more than 2**31 elements."""
    return first + tl.arange(0, COUNT).to(tl.int64)


@triton.jit
def to_fp32(v):
    """fp32 of any floating type. Of bf16 by its bits: the interpreter converts its subnormals wrongly (Triton 3.9)."""
    if v.dtype == tl.bfloat16:
        v = (v.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return v.to(tl.float32)


@triton.jit
def read(x, row_stride, col_stride, rows, cols, first_row, first_col, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The tile at first_row and first_col (int64), zeros where it lies outside [rows, cols]."""
    r, low, high = _places(first_row, first_col, ROWS, GROUPS)
    at = x + r * row_stride
    low_half = tl.load(at + low * col_stride, mask=(r < rows) & (low < cols), other=0.0)
    high_half = tl.load(at + high * col_stride, mask=(r < rows) & (high < cols), other=0.0)
    return to_fp32(low_half), to_fp32(high_half)


@triton.jit
def center(tile, mean, counting, rows, cols, first_row, first_col, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The tile less counting [rows] (outer) mean [cols], zeros still where it lies outside. mean absent: the tile;
    counting absent: ones.
    """
    if mean is not None:
        r, low, high = _places(first_row, first_col, ROWS, GROUPS)
        low_shift = tl.load(mean + low, mask=low < cols, other=0.0)
        high_shift = tl.load(mean + high, mask=high < cols, other=0.0)
        if counting is not None:
            counts = tl.load(counting + r, mask=r < rows, other=0.0)
            low_shift = counts * low_shift
            high_shift = counts * high_shift
        low_half = tl.where((r < rows) & (low < cols), tile[0] - low_shift, 0.0)
        high_half = tl.where((r < rows) & (high < cols), tile[1] - high_shift, 0.0)
        tile = (low_half, high_half)
    return tile


@triton.jit
def transpose(tile, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """A tile [ROWS, GROUPS * 16] as a tile [GROUPS * 16, ROWS]: through shared memory, once."""
    COLS: tl.constexpr = GROUPS * 16
    halves = tl.reshape(tl.trans(whole(tile, ROWS, GROUPS)), [COLS, ROWS // 16, 2, 8])
    low, high = tl.split(tl.permute(halves, (0, 1, 3, 2)))
    return tl.reshape(low, [COLS, ROWS // 2]), tl.reshape(high, [COLS, ROWS // 2])


@triton.jit
def whole(tile, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """A tile as one tensor [ROWS, GROUPS * 16]."""
    low = tl.reshape(tile[0], [ROWS, GROUPS, 8])
    high = tl.reshape(tile[1], [ROWS, GROUPS, 8])
    return tl.reshape(tl.permute(tl.join(low, high), (0, 1, 3, 2)), [ROWS, GROUPS * 16])


@triton.jit
def _places(first_row, first_col, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The rows and columns of a tile's elements: [ROWS, 1], and [1, GROUPS * 8] for either half."""
    i = tl.arange(0, GROUPS * 8)
    low = first_col + ((i // 8) * 16 + i % 8).to(tl.int64)[None, :]
    return indices(first_row, ROWS)[:, None], low, low + 8
