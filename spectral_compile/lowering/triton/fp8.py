"""The carrier "fp8": MXFP4 on Hopper's and Ada's FP8 units, at twice the rate of bf16.

`formats/e5m2.py` says what becomes of the operands. Two kernels make E5M2 matrices of them, a third multiplies these:
decoding once pays where each value is read by many tiles, and an FP8 product has half the time of a bf16 one to hide
decoding behind.
"""

import triton
import triton.language as tl

from spectral_compile.formats.e5m2 import LARGEST as _LARGEST
from spectral_compile.formats.e5m2 import SPAN as _SPAN
from spectral_compile.lowering.triton.decode import at, interleaved, spread
from spectral_compile.lowering.triton.epilogue import finished, store, tile_of

BLOCK = tl.constexpr(32)
LARGEST, SPAN = tl.constexpr(_LARGEST), tl.constexpr(_SPAN)


@triton.jit(do_not_specialize=["extent", "count"])
def exponents_kernel(
    scales, tops, extent, count, stride, k_stride, PER_SCALE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """tops [extent] int32: the largest scale byte along k of each row (or column) that a product contracts.

    PER_SCALE rows share a scale, `stride` from those of the next ones; there are `count` along k, k_stride apart.
    """
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    top = tl.full((ROWS,), 0, tl.int32)
    for start in range(0, count, COLS):
        j = start + tl.arange(0, COLS)
        pointers = scales + (i // PER_SCALE).to(tl.int64)[:, None] * stride + j.to(tl.int64)[None, :] * k_stride
        s = tl.load(pointers, mask=(i < extent)[:, None] & (j < count)[None, :], other=0).to(tl.int32)
        top = tl.maximum(top, tl.max(s, axis=1))
    tl.store(tops + i, top, mask=i < extent)


@triton.jit(do_not_specialize=["rows", "cols"])
def convert_kernel(
    codes, scales, tops, values, lost, rows, cols, codes_row, scales_row, values_rows, values_row,
    TILE_ROWS: tl.constexpr, K_LAST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """values [values_rows, values_row], bytes of E5M2 with k last: of a matrix stored [rows, cols], with blocks along
    cols, relative to `tops` along the axis that is not k; padded with zeros. lost [1] int64 grows by the number of
    blocks that are out of E5M2's range.
    """
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLS + tl.arange(0, COLS)
    byte = tl.program_id(1) * (COLS // 2) + tl.arange(0, COLS // 2)
    block = tl.program_id(1) * (COLS // BLOCK) + tl.arange(0, COLS // BLOCK)
    blocks = tl.cdiv(cols, BLOCK)
    known = (r < rows)[:, None] & (byte // (BLOCK // 2) < blocks)[None, :]
    halves = interleaved(tl.load(at(codes, r, byte, codes_row), mask=known, other=0), ROWS, COLS)
    known = (r < rows)[:, None] & (block < blocks)[None, :]
    s = tl.load(at(scales, r // TILE_ROWS, block, scales_row), mask=known, other=0).to(tl.int32)
    s = spread(s, ROWS, COLS, BLOCK)
    if K_LAST:
        top = tl.load(tops + r, mask=r < rows, other=0)[:, None]
    else:
        top = tl.load(tops + c, mask=c < cols, other=0)[None, :]
    # Halves are 2**-14 of what they stand for. A factor that small makes 0 of any: no need for its exact exponent.
    power = ((tl.maximum(s - top, -100) + (14 + LARGEST + 127)) << 23).to(tl.float32, bitcast=True)
    inside = (r < rows)[:, None] & (c < cols)[None, :]
    scaled = tl.where(inside, halves.to(tl.float32) * power, 0.0)
    # E5M2 is the upper half of fp16; what is cut off is 0 within its range.
    wide = scaled.to(tl.float16).to(tl.int16, bitcast=True)
    upper = (wide >> 8).to(tl.int8)
    out_of_range = (inside & (top - s > SPAN) & (halves != 0)).to(tl.int32)
    if K_LAST:
        found = tl.max(tl.reshape(out_of_range, (ROWS, COLS // BLOCK, BLOCK)), axis=2)
        tl.store(at(values, r, c, values_row), upper, mask=(r < values_rows)[:, None] & (c < values_row)[None, :])
    else:  # what is a block to the product stands upright here
        found = tl.max(tl.reshape(out_of_range, (ROWS // BLOCK, BLOCK, COLS)), axis=1)
        written = (c < values_rows)[:, None] & (r < values_row)[None, :]
        tl.store(at(values, c, r, values_row), tl.trans(upper), mask=written)
    tl.atomic_add(lost, tl.sum(tl.sum(found, axis=1), axis=0).to(tl.int64))


@triton.jit(do_not_specialize=["m", "n", "k"])
def fp8_kernel(
    a, b, a_tops, b_tops, out, m, n, k, a_scale, b_scale, left, right, left_row, right_row,
    RANK: tl.constexpr, HAS_LEFT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out [m, n] of `spectral::scaled_mm`, whose operands are a [*, k] and b [*, k] in E5M2, contiguous, padded to
    whole tiles, and relative to their tops.

    Hopper's FP8 units keep about 14 bits of a sum: every BLOCK_K of k it is added up in fp32 registers.
    """
    row, col = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    m_index, n_index = row * BLOCK_M + tl.arange(0, BLOCK_M), col * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    k = tl.cdiv(k, BLOCK_K) * BLOCK_K  # no other number, but one whose rows the compiler knows to be aligned
    for start in range(0, k, BLOCK_K):
        along = start + tl.arange(0, BLOCK_K)
        x, y = tl.load(at(a, m_index, along, k)), tl.load(at(b, n_index, along, k))
        sums = tl.dot(x, tl.trans(y), sums, max_num_imprecise_acc=BLOCK_K)
    a_top = tl.load(a_tops + m_index, mask=m_index < m, other=0)[:, None]
    b_top = tl.load(b_tops + n_index, mask=n_index < n, other=0)[None, :]
    exponent = a_top + b_top - 2 * (127 + LARGEST)
    # In two steps: a power of two that makes a number of a sum may be none itself.
    half = exponent >> 1
    sums = (sums * _power(half)) * _power(exponent - half)
    sums = tl.where((a_top == 255) | (b_top == 255), float("nan"), sums)
    sums = finished(sums, m_index, n_index, m, n, a_scale, b_scale, left, right, left_row, right_row, RANK, HAS_LEFT)
    store(out, sums, m_index, n_index, m, n)


@triton.jit
def _power(exponent):
    """2**exponent in fp32; 2**-126 below, which makes 0 of any sum when it is applied twice."""
    return ((tl.maximum(exponent, -126) + 127) << 23).to(tl.float32, bitcast=True)
