"""From packed codes and scale bytes to values, in registers: what every product that has no FP4 unit begins with."""

import triton
import triton.language as tl

E4M3, E8M0 = tl.constexpr(16), tl.constexpr(32)  # a format's block says which of the two its scales are


@triton.jit
def load_values(
    codes, scales, row, col, rows, cols, codes_row, scales_row,
    ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr, TILE_ROWS: tl.constexpr,
    WHOLE: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """bf16 [ROWS, COLS] from (row, col) on, of a matrix stored [rows, cols] with its blocks along cols.

    row and col are multiples of ROWS and COLS; COLS of BLOCK. codes_row, scales_row: strides, in elements of each.
    WHOLE: cols is a multiple of COLS. Rows beyond the last are 0; columns are where they are SUMMED over, else what
    pads the last block, which nobody looks at.
    """
    r = row + tl.arange(0, ROWS)
    byte = col // 2 + tl.arange(0, COLS // 2)
    # A whole block is in or out: said so, masks do not split wide loads, which alone can be fetched ahead.
    known = (r < rows)[:, None] & (byte // (BLOCK // 2) < tl.cdiv(cols, BLOCK))[None, :]
    packed = tl.load(at(codes, r, byte, codes_row), mask=known, other=0)
    block = col // BLOCK + tl.arange(0, COLS // BLOCK)
    known = (r < rows)[:, None]
    if not WHOLE:
        known = known & (block < tl.cdiv(cols, BLOCK))[None, :]
    s = tl.load(at(scales, r // TILE_ROWS, block, scales_row), mask=known, other=0)
    halves = interleaved(packed, ROWS, COLS)
    if BLOCK == E4M3:  # one product for both: 448 * 2**14 is an fp32 number, and so is what comes out
        factor = spread(e4m3(s) * 16384.0, ROWS, COLS, BLOCK)
        values = halves.to(tl.float32) * factor
    else:  # 2**127 * 2**14 is none
        values = (halves.to(tl.float32) * 16384.0) * spread(e8m0(s), ROWS, COLS, BLOCK)
    if SUMMED and not WHOLE:
        values = tl.where((col + tl.arange(0, COLS) < cols)[None, :], values, 0.0)
    return values.to(tl.bfloat16)


@triton.jit
def at(base, row, col, stride):
    """Pointers to elements [rows, cols]. 64 bits: among expert stacks 2**31 bytes are no exception."""
    return base + row.to(tl.int64)[:, None] * stride + col[None, :]


@triton.jit
def interleaved(packed, ROWS: tl.constexpr, COLS: tl.constexpr):
    """fp16 [ROWS, COLS]: the E2M1 values of packed bytes [ROWS, COLS / 2], times 2**-14.

    E2M1's exponent and mantissa, put where fp16 keeps the lowest bits of its exponent and the highest of its mantissa,
    are the same number less the difference of the biases, subnormals included.
    """
    wide = packed.to(tl.int16)
    low = ((wide & 7) << 9) | ((wide & 8) << 12)
    high = ((wide & 0x70) << 5) | ((wide & 0x80) << 8)
    return tl.reshape(tl.join(low, high), (ROWS, COLS)).to(tl.float16, bitcast=True)


@triton.jit
def spread(s, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK: tl.constexpr):
    """[ROWS, COLS] from a number for each block of each row, [ROWS, COLS / BLOCK]."""
    return tl.reshape(tl.broadcast_to(s[:, :, None], (ROWS, COLS // BLOCK, BLOCK)), (ROWS, COLS))


@triton.jit
def e4m3(byte):
    """fp32 values of E4M3 bytes. By hand: Triton has the type from sm_89 on only."""
    wide = byte.to(tl.int16)
    half = (((wide & 0x7F) << 7) | ((wide & 0x80) << 8)).to(tl.float16, bitcast=True)
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def e8m0(byte):
    """fp32 powers of two of E8M0 bytes: 2**(byte - 127), of which the first is subnormal; 255 is NaN."""
    wide = byte.to(tl.int32)
    bits = tl.where(wide == 0, 0x400000, tl.where(wide == 255, 0x7FC00000, wide << 23))
    return bits.to(tl.float32, bitcast=True)
