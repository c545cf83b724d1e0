"""Groups of sixteen neighbours, as sixteen tensors: element j of every group is a tensor of its own.

So each thread holds whole groups, and what runs along a group (its maximum, the Hadamard transform, packing) is plain
arithmetic in registers, in an order that is ours.
"""

import triton
import triton.language as tl


@triton.jit
def take_apart(low, high, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """A tile's halves [ROWS, GROUPS * 8] (see tiles.py) as sixteen tensors [ROWS, GROUPS]."""
    low = tl.reshape(low, [ROWS, GROUPS, 2, 2, 2])
    high = tl.reshape(high, [ROWS, GROUPS, 2, 2, 2])
    return _halve(_halve(_halve((low,), 1), 2), 4) + _halve(_halve(_halve((high,), 1), 2), 4)


@triton.jit
def put_together(xs, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Sixteen tensors [ROWS, GROUPS] as one, [ROWS, GROUPS * 16]."""
    whole = _double(_double(_double(_double(xs, 8), 4), 2), 1)[0]
    return tl.reshape(whole, [ROWS, GROUPS * 16])


@triton.jit
def largest_magnitude_bits(xs):
    """Of each group [ROWS, GROUPS], int32; above those of infinity where it holds NaN."""
    largest = tl.abs(xs[0])
    for j in tl.static_range(1, 16):
        largest = tl.maximum(largest, tl.abs(xs[j]), propagate_nan=tl.PropagateNan.ALL)
    return largest.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # the sign of a NaN is anything


@triton.jit
def sum_of_neighbours(xs):
    """The sum of each group [ROWS, GROUPS], in the order of formats/blocks.py."""
    xs = _add_pairs(xs, 8)
    xs = _add_pairs(xs, 4)
    xs = _add_pairs(xs, 2)
    return xs[0] + xs[1]


@triton.jit
def sum_of_blocks(xs, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The sum of each 16 x 16 elements [ROWS / 16, GROUPS], in the order of formats/blocks.py: rows first."""
    x = put_together(xs, ROWS, GROUPS)
    for i in tl.static_range(4):  # sums of two: no order that a reduction could choose
        x = tl.sum(tl.reshape(x, [ROWS >> (i + 1), 2, GROUPS * 16]), axis=1)
    for i in tl.static_range(4):
        x = tl.sum(tl.reshape(x, [ROWS // 16, GROUPS * (8 >> i), 2]), axis=2)
    return x


@triton.jit
def max_of_blocks(x, ROWS: tl.constexpr, GROUPS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr):
    """x [ROWS, GROUPS], int32, to the largest of each block [ROWS / TILE_ROWS, GROUPS / BLOCK_GROUPS]."""
    if BLOCK_GROUPS > 1:
        x = tl.max(tl.reshape(x, [ROWS, GROUPS // BLOCK_GROUPS, BLOCK_GROUPS]), axis=2)
    if TILE_ROWS > 1:
        x = tl.max(tl.reshape(x, [ROWS // TILE_ROWS, TILE_ROWS, GROUPS // BLOCK_GROUPS]), axis=1)
    return x


@triton.jit
def to_groups(x, ROWS: tl.constexpr, GROUPS: tl.constexpr, TILE_ROWS: tl.constexpr, BLOCK_GROUPS: tl.constexpr):
    """What a block has, for each of its groups: [ROWS / TILE_ROWS, GROUPS / BLOCK_GROUPS] to [ROWS, GROUPS]."""
    blocks: tl.constexpr = GROUPS // BLOCK_GROUPS
    if BLOCK_GROUPS > 1:
        x = tl.broadcast_to(x[:, :, None], [ROWS // TILE_ROWS, blocks, BLOCK_GROUPS])
        x = tl.reshape(x, [ROWS // TILE_ROWS, GROUPS])
    if TILE_ROWS > 1:
        x = tl.broadcast_to(x[:, None, :], [ROWS // TILE_ROWS, TILE_ROWS, GROUPS])
        x = tl.reshape(x, [ROWS, GROUPS])
    return x


@triton.jit
def _halve(xs, COUNT: tl.constexpr):
    """Tensors with one dimension less, twice as many: the last one, of two, becomes the index's highest bit."""
    low = ()
    high = ()
    for i in tl.static_range(COUNT):
        a, b = tl.split(xs[i])
        low = low + (a,)
        high = high + (b,)
    return low + high


@triton.jit
def _double(xs, COUNT: tl.constexpr):
    """Tensors with one dimension more, COUNT of them: the index's highest bit becomes the last dimension."""
    joined = ()
    for i in tl.static_range(COUNT):
        joined = joined + (tl.join(xs[i], xs[i + COUNT]),)
    return joined


@triton.jit
def _add_pairs(xs, COUNT: tl.constexpr):
    sums = ()
    for i in tl.static_range(COUNT):
        sums = sums + (xs[2 * i] + xs[2 * i + 1],)
    return sums
