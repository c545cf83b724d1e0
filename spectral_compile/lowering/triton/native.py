"""The carrier "native": Blackwell's own FP4 arithmetic, codes and block scales into the tensor core as they are."""

import triton
import triton.language as tl

from spectral_compile.lowering.triton.decode import E4M3, at
from spectral_compile.lowering.triton.epilogue import finished, store, tile_of


@triton.jit(do_not_specialize=["m", "n", "k"])
def native_kernel(
    a_codes, a_scales, b_codes, b_scales, out, m, n, k, a_codes_row, a_scales_row, b_codes_row, b_scales_row,
    a_scale, b_scale, left, right, left_row, right_row,
    BLOCK: tl.constexpr, A_TILE_ROWS: tl.constexpr, B_TILE_ROWS: tl.constexpr, RANK: tl.constexpr,
    HAS_LEFT: tl.constexpr, WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out [m, n] of `spectral::scaled_mm`, whose operands lie [m, k] and [n, k], in one format.

    The tensor core reads a scale for each block of each row: those of square blocks are repeated on the way.
    """
    row, col = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    m_index, n_index = row * BLOCK_M + tl.arange(0, BLOCK_M), col * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.full((BLOCK_M, BLOCK_N), 0.0, tl.float32)
    for start in range(0, k, BLOCK_K):
        a = _codes(a_codes, m_index, start, m, k, a_codes_row, BLOCK_K, BLOCK, WHOLE_K)
        b = _codes(b_codes, n_index, start, n, k, b_codes_row, BLOCK_K, BLOCK, WHOLE_K)
        s = _scales(a_scales, m_index, start, m, k, a_scales_row, BLOCK_K, BLOCK, A_TILE_ROWS, WHOLE_K)
        t = _scales(b_scales, n_index, start, n, k, b_scales_row, BLOCK_K, BLOCK, B_TILE_ROWS, WHOLE_K)
        sums = tl.dot_scaled(a, s, "e2m1", tl.trans(b), t, "e2m1", sums)
    sums = finished(sums, m_index, n_index, m, n, a_scale, b_scale, left, right, left_row, right_row, RANK, HAS_LEFT)
    store(out, sums, m_index, n_index, m, n)


@triton.jit
def _codes(codes, r, start, rows, k, stride, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, WHOLE_K: tl.constexpr):
    """Packed [len(r), BLOCK_K / 2], with zeros for what is beyond k."""
    byte = start // 2 + tl.arange(0, BLOCK_K // 2)
    known = (r < rows)[:, None]
    if WHOLE_K:
        return tl.load(at(codes, r, byte, stride), mask=known, other=0)
    packed = tl.load(at(codes, r, byte, stride), mask=known & (byte // (BLOCK // 2) < tl.cdiv(k, BLOCK)), other=0)
    nibbles = tl.where(2 * byte + 1 < k, 0xFF, tl.where(2 * byte < k, 0x0F, 0)).to(tl.uint8)
    return packed & nibbles[None, :]


@triton.jit
def _scales(
    scales, r, start, rows, k, stride, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, TILE_ROWS: tl.constexpr,
    WHOLE_K: tl.constexpr,
):  # fmt: skip
    """[len(r), BLOCK_K / BLOCK], in the type by which `tl.dot_scaled` tells the formats apart."""
    block = start // BLOCK + tl.arange(0, BLOCK_K // BLOCK)
    known = (r < rows)[:, None]
    if not WHOLE_K:
        known = known & (block < tl.cdiv(k, BLOCK))[None, :]
    s = tl.load(at(scales, r // TILE_ROWS, block, stride), mask=known, other=0)
    return s.to(tl.float8e4nv, bitcast=True) if BLOCK == E4M3 else s


@triton.jit(do_not_specialize=["rows", "cols", "known_bytes"])
def transpose_kernel(
    codes, transposed, rows, cols, known_bytes, codes_row, transposed_row, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """transposed [cols, transposed_row bytes]: codes of a matrix stored [rows, cols], packed along rows instead, padded
    with zeros. known_bytes: how many a row of codes has.
    """
    r, byte = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLS // 2 + tl.arange(0, COLS // 2)
    packed = tl.load(at(codes, r, byte, codes_row), mask=(r < rows)[:, None] & (byte < known_bytes)[None, :], other=0)
    nibbles = tl.reshape(tl.join(packed & 0xF, packed >> 4), (ROWS, COLS))
    low, high = tl.split(tl.reshape(tl.trans(nibbles), (COLS, ROWS // 2, 2)))
    c, to = tl.program_id(1) * COLS + tl.arange(0, COLS), tl.program_id(0) * ROWS // 2 + tl.arange(0, ROWS // 2)
    inside = (c < cols)[:, None] & (to < transposed_row)[None, :]
    tl.store(at(transposed, c, to, transposed_row), low | (high << 4), mask=inside)
