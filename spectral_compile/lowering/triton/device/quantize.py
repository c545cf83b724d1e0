"""The kernel that quantises: one read of a matrix gives codes and scales along its rows, down its columns, or both."""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.device import e2m1, hadamard, mxfp4, nvfp4, philox, tiles
from spectral_compile.lowering.triton.device.groups import largest_magnitude_bits, max_of_blocks, take_apart, to_groups


@triton.jit(do_not_specialize=["row_stream", "col_stream"])
def quantize_tiles(
    x,
    rows,
    cols,
    row_stride,
    col_stride,
    row_mean,
    row_counting,
    row_amax,
    row_seed,
    row_stream,
    row_codes,
    row_scales,
    row_tensor_scale,
    col_mean,
    col_counting,
    col_amax,
    col_seed,
    col_stream,
    col_codes,
    col_scales,
    col_tensor_scale,
    ROW_FORMAT: tl.constexpr,
    ROW_RULE: tl.constexpr,
    ROW_TILE_ROWS: tl.constexpr,
    ROW_HADAMARD: tl.constexpr,
    COL_FORMAT: tl.constexpr,
    COL_RULE: tl.constexpr,
    COL_TILE_ROWS: tl.constexpr,
    COL_HADAMARD: tl.constexpr,
    SAME_MEAN: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """x [rows, cols], a tile [ROWS, GROUPS * 16] a program, neighbours along a row first.

    row_*: what is quantised along rows; all None where nothing is. col_*: the same down columns, stored transposed.
    mean [cols] and counting [rows], fp32, may be None; so may seed (int64) for rounding to nearest, and amax (fp32)
    for a format without tensor scale. codes are int64, the sixteen of a group each; scales are bytes.
    SAME_MEAN: both take out the same.
    """
    across = tl.cdiv(cols, GROUPS * 16)
    program = tl.program_id(0)
    first_row = (program // across).to(tl.int64) * ROWS
    first_col = (program % across).to(tl.int64) * (GROUPS * 16)
    x_tile = tiles.read(x, row_stride, col_stride, rows, cols, first_row, first_col, ROWS, GROUPS)
    if row_codes is not None:
        tile = tiles.center(x_tile, row_mean, row_counting, rows, cols, first_row, first_col, ROWS, GROUPS)
        _quantize(
            *(tile, first_row, first_col, rows, cols, row_amax, row_seed, row_stream),
            *(row_codes, row_scales, row_tensor_scale),
            *(ROW_FORMAT, ROW_RULE, ROW_TILE_ROWS, ROW_HADAMARD, ROWS, GROUPS),
        )
    if col_codes is not None:
        if not SAME_MEAN:
            tile = tiles.center(x_tile, col_mean, col_counting, rows, cols, first_row, first_col, ROWS, GROUPS)
        _quantize(
            *(tiles.transpose(tile, ROWS, GROUPS), first_col, first_row, cols, rows, col_amax, col_seed, col_stream),
            *(col_codes, col_scales, col_tensor_scale),
            *(COL_FORMAT, COL_RULE, COL_TILE_ROWS, COL_HADAMARD, GROUPS * 16, ROWS // 16),
        )


@triton.jit
def _quantize(
    tile,
    first_row,
    first_col,
    rows,
    cols,
    amax,
    seed,
    stream,
    codes,
    scales,
    tensor_scale,
    FORMAT: tl.constexpr,
    RULE: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    HADAMARD: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The tile at first_row and first_col of a matrix [rows, cols], in blocks along its rows."""
    BLOCK_GROUPS: tl.constexpr = 2 if FORMAT == "mxfp4" else 1
    xs = take_apart(tile[0], tile[1], ROWS, GROUPS)
    if HADAMARD:
        xs = hadamard.transform(xs)
    largest = max_of_blocks(largest_magnitude_bits(xs), ROWS, GROUPS, TILE_ROWS, BLOCK_GROUPS)
    if HADAMARD:
        xs = hadamard.round_each_to_bf16(xs)
        largest = hadamard.round_magnitude_bits(largest)

    if FORMAT == "mxfp4":
        byte, inverse = mxfp4.block_scales(largest, RULE)
        of_tensor = 1.0
    else:
        largest_of_all = tl.load(amax)
        byte, inverse = nvfp4.block_scales(xs, largest, largest_of_all, RULE, ROWS, GROUPS, TILE_ROWS)
        of_tensor = nvfp4.tensor_scale(largest_of_all)
    if tl.program_id(0) == 0:
        tl.store(tensor_scale, of_tensor)

    blocks = tl.cdiv(cols, 16 * BLOCK_GROUPS)
    s = tiles.indices(first_row // TILE_ROWS, ROWS // TILE_ROWS)[:, None]
    b = tiles.indices(first_col // (16 * BLOCK_GROUPS), GROUPS // BLOCK_GROUPS)[None, :]
    inside = (s < tl.cdiv(rows, TILE_ROWS)) & (b < blocks)
    tl.store(scales + s * blocks + b, byte.to(tl.uint8), mask=inside)

    groups = blocks * BLOCK_GROUPS
    r = tiles.indices(first_row, ROWS)[:, None]
    g = tiles.indices(first_col // 16, GROUPS)[None, :]
    group = r * groups + g
    inverse = to_groups(inverse, ROWS, GROUPS, TILE_ROWS, BLOCK_GROUPS)
    words = None if seed is None else philox.random_words(tl.load(seed), stream, group)
    low = _eight_codes(xs, inverse, words, 0)
    high = _eight_codes(xs, inverse, words, 8)
    packed = (low.to(tl.int64) & 0xFFFFFFFF) | (high.to(tl.int64) << 32)
    packed = tl.where(inverse == 0.0, 0, packed)  # a poisoned block's, whose values may be NaN
    tl.store(codes + group, packed, mask=(r < rows) & (g < groups))


@triton.jit
def _eight_codes(xs, inverse, words, FIRST: tl.constexpr):
    """Codes of elements FIRST to FIRST + 7 of each group in the bits of an int32, the first lowest."""
    packed = tl.zeros_like(inverse).to(tl.int32)
    for i in tl.static_range(8):
        y = xs[FIRST + i] * inverse
        if words is None:
            code = e2m1.encode_nearest(y)
        else:
            code = e2m1.encode_stochastic(y, philox.random_byte(words, FIRST + i))
        packed |= code << (4 * i)
    return packed
