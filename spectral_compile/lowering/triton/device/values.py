"""From codes back to values, and an operand less its mean: kernels of one element after the other."""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.device import e2m1, mxfp4, nvfp4, tiles
from spectral_compile.lowering.triton.device.tiles import indices


@triton.jit
def values_of_codes(
    codes,
    scales,
    tensor_scale,
    values,
    rows,
    cols,
    blocks,
    FORMAT: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """values [rows, cols], fp32 or bf16: code * block scale, times tensor_scale unless it is None."""
    BLOCK: tl.constexpr = 32 if FORMAT == "mxfp4" else 16
    across = tl.cdiv(cols, COLS)
    program = tl.program_id(0)
    first_col = (program % across).to(tl.int64) * COLS
    r = indices((program // across).to(tl.int64) * ROWS, ROWS)[:, None]
    pair = indices(first_col // 2, COLS // 2)[None, :]
    block_bytes = blocks * (BLOCK // 2)
    packed = tl.load(codes + r * block_bytes + pair, mask=(r < rows) & (pair < block_bytes), other=0).to(tl.int32)
    both = tl.join(e2m1.decode(packed & 15), e2m1.decode(packed >> 4))
    code_values = tl.reshape(both, [ROWS, COLS])

    b = indices(first_col // BLOCK, COLS // BLOCK)[None, :]
    place = scales + (r // TILE_ROWS) * blocks + b
    byte = tl.load(place, mask=(r < rows) & (b < blocks), other=0).to(tl.int32)
    scale = mxfp4.decode_scales(byte) if FORMAT == "mxfp4" else nvfp4.decode_scales(byte)
    scale = tl.reshape(tl.broadcast_to(scale[:, :, None], [ROWS, COLS // BLOCK, BLOCK]), [ROWS, COLS])
    result = code_values * scale
    if tensor_scale is not None:
        result = result * tl.load(tensor_scale)
    c = indices(first_col, COLS)[None, :]
    tl.store(values + r * cols + c, result.to(values.dtype.element_ty), mask=(r < rows) & (c < cols))


@triton.jit
def centered(
    x,
    rows,
    cols,
    row_stride,
    col_stride,
    mean,
    counting,
    result,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """result [rows, cols], fp32: x less counting [rows] (outer) mean [cols]; counting may be None."""
    across = tl.cdiv(cols, GROUPS * 16)
    program = tl.program_id(0)
    first_row = (program // across).to(tl.int64) * ROWS
    first_col = (program % across).to(tl.int64) * (GROUPS * 16)
    tile = tiles.read(x, row_stride, col_stride, rows, cols, first_row, first_col, ROWS, GROUPS)
    tile = tiles.center(tile, mean, counting, rows, cols, first_row, first_col, ROWS, GROUPS)
    values = tiles.whole(tile, ROWS, GROUPS)
    r = indices(first_row, ROWS)[:, None]
    c = indices(first_col, GROUPS * 16)[None, :]
    tl.store(result + r * cols + c, values, mask=(r < rows) & (c < cols))
