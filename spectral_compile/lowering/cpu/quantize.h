// Quantising a matrix: one pass for the largest magnitude, one that scales, rounds and packs.
#pragma once

#include <algorithm>

#include "nvfp4.h"
#include "philox.h"
#include "source.h"

namespace spectral {

// How a tensor is quantised, and where its codes and scales go: stored with the block axis last.
struct Quantization {
  int tile_rows;  // a block's extent across: 1 or 16
  TensorScale tensor;
  Random random;  // read by stochastic rounding only
  uint8_t *codes, *scales;
  int64_t blocks;  // along the block axis
  int threads;
};

// The bits of the largest magnitude; above those of infinity where the matrix holds NaN.
inline int32_t largest_magnitude_bits(const Source& x, int threads) {
  constexpr int64_t strip = 4096;  // so that a matrix of few long rows keeps every thread busy
  int32_t largest = 0;
#pragma omp parallel for collapse(2) reduction(max : largest) num_threads(threads) schedule(static)
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t col = 0; col < x.cols; col += strip)
      largest = std::max(largest, max_over_lanes(x.largest_bits(row, col, std::min(col + strip, x.cols))));
  }
  return largest;
}

// --- blocks along the contiguous axis -------------------------------------------------------------------------------

// The codes of 16 blocks of one row, the first of them being block number `group` of the tensor.
template <bool stochastic>
void encode_blocks(const Group& values, f32x16 inverse, int64_t group, int64_t blocks, const Quantization& q) {
  uint8_t random[LANES][BLOCK];
  if constexpr (stochastic) random_rows(group, q.random, random);
  for (int b = 0; b < blocks; ++b) {
    const f32x16 y = values[b] * inverse[b];
    i32x16 codes;
    if constexpr (stochastic)
      codes = encode_stochastic(y, load_bytes(random[b]));
    else
      codes = encode_nearest(y);
    store(q.codes + (group + b) * CODE_BYTES, pack(codes));
  }
}

// A panel is 16 neighbouring blocks, of one row (tile_rows 1) or of 16 rows: their maxima fill one vector.
template <bool stochastic>
void quantize_panel(const Source& x, int64_t first_row, int64_t first_block, const Quantization& q) {
  const int64_t rows = std::min<int64_t>(q.tile_rows, x.rows - first_row);
  const int64_t blocks = std::min<int64_t>(LANES, q.blocks - first_block);
  Group values[BLOCK];
  i32x16 largest[LANES] = {};
  for (int64_t r = 0; r < rows; ++r) {
    x.read_across(first_row + r, first_block * BLOCK, values[r]);
    for (int b = 0; b < LANES; ++b) largest[b] = max(largest[b], magnitude_bits(values[r][b]));
  }

  const BlockScales scales(max_of_each(largest), q.tensor);
  const u8x16 scale_bytes = __builtin_convertvector(scales.byte, u8x16);
  std::memcpy(q.scales + first_row / q.tile_rows * q.blocks + first_block, &scale_bytes, blocks);

  for (int64_t r = 0; r < rows; ++r)
    encode_blocks<stochastic>(values[r], scales.inverse, (first_row + r) * q.blocks + first_block, blocks, q);
}

template <bool stochastic>
void quantize_along_rows(const Source& x, const Quantization& q) {
#pragma omp parallel for collapse(2) num_threads(q.threads) schedule(static)
  for (int64_t row = 0; row < x.rows; row += q.tile_rows) {
    for (int64_t block = 0; block < q.blocks; block += LANES) quantize_panel<stochastic>(x, row, block, q);
  }
}

// --- blocks along the strided axis ----------------------------------------------------------------------------------

// The results of a strip of columns, gathered so that whole cache lines are written: 64 bytes of codes a column.
constexpr int STRIP_BLOCKS = 8;

struct Strip {
  uint64_t codes[STRIP_BLOCKS][STRIP_COLS];
  uint8_t scales[STRIP_BLOCKS][STRIP_COLS];  // one in tile_rows is there
};

// The codes of 16 x 16 elements with one block a lane, the first of them being block number `group` of the tensor.
template <bool stochastic>
void encode_lanes(const Group& values, f32x16 inverse, int64_t group, const Quantization& q, uint64_t* codes_of_lane) {
  u32x16 random[4];
  if constexpr (stochastic) random_columns(group, q.blocks, q.random, random);
  u32x16 low{}, high{};  // of each lane's 64 bits: elements 0 to 7, and 8 to 15
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i) {
    const f32x16 y = values[i] * inverse;
    i32x16 codes;
    if constexpr (stochastic)
      codes = encode_stochastic(y, bitcast<i32x16>((random[i / 4] >> (i % 4 * 8)) & 0xFF));
    else
      codes = encode_nearest(y);
    (i < 8 ? low : high) |= bitcast<u32x16>(codes) << (i % 8 * 4);
  }
  store(codes_of_lane, __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  store(codes_of_lane + 8,
        __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}

// 16 x 16 elements: sixteen blocks side by side, or one two-dimensional block.
template <bool stochastic>
void quantize_square(const Group& values, int64_t group, const Quantization& q, uint64_t* codes, uint8_t* scale_bytes) {
  i32x16 largest{};
  for (const f32x16& value : values) largest = max(largest, magnitude_bits(value));
  if (q.tile_rows > 1) largest = i32x16{} + max_over_lanes(largest);
  const BlockScales scales(largest, q.tensor);
  store(scale_bytes, __builtin_convertvector(scales.byte, u8x16));
  encode_lanes<stochastic>(values, scales.inverse, group, q, codes);
}

// The codes and scales of `blocks` x `cols` blocks to their places.
inline void write_strip(const Strip& strip, int64_t first_block, int64_t first_col, int blocks, int cols,
                        const Quantization& q) {
  for (int c = 0; c < cols; ++c) {
    uint8_t* codes = q.codes + ((first_col + c) * q.blocks + first_block) * CODE_BYTES;
    for (int b = 0; b < blocks; ++b) store(codes + b * CODE_BYTES, strip.codes[b][c]);
  }
  for (int c = 0; c < cols; c += q.tile_rows) {
    uint8_t* scales = q.scales + (first_col + c) / q.tile_rows * q.blocks + first_block;
    for (int b = 0; b < blocks; ++b) scales[b] = strip.scales[b][c];
  }
}

// Asks for the cache lines that write_strip will write: an eighth of them each time, b = 0 to 7, as all at once would
// stall.
inline void prefetch_targets(int64_t first_block, int64_t first_col, int b, int cols, const Quantization& q) {
  for (int c = b; c < cols; c += STRIP_BLOCKS) {
    __builtin_prefetch(q.codes + ((first_col + c) * q.blocks + first_block) * CODE_BYTES, 1);
    __builtin_prefetch(q.scales + (first_col + c) / q.tile_rows * q.blocks + first_block, 1);
  }
}

template <bool stochastic>
void quantize_strip(const Source& x, int64_t first_block, int64_t first_col, const Quantization& q) {
  const int blocks = std::min<int64_t>(STRIP_BLOCKS, q.blocks - first_block);
  const int cols = std::min<int64_t>(STRIP_COLS, x.cols - first_col);
  Strip strip;
  for (int b = 0; b < blocks; ++b) {
    Group values[STRIP_COLS / LANES];
    x.read_down((first_block + b) * BLOCK, first_col, values);
    for (int c = 0; c < cols; c += LANES) {
      const int64_t group = (first_col + c) * q.blocks + first_block + b;
      quantize_square<stochastic>(values[c / LANES], group, q, &strip.codes[b][c], &strip.scales[b][c]);
    }
    prefetch_targets(first_block, first_col, b, cols, q);
  }
  write_strip(strip, first_block, first_col, blocks, cols, q);
}

template <bool stochastic>
void quantize_along_cols(const Source& x, const Quantization& q) {
#pragma omp parallel for collapse(2) num_threads(q.threads) schedule(static)
  for (int64_t block = 0; block < q.blocks; block += STRIP_BLOCKS) {
    for (int64_t col = 0; col < x.cols; col += STRIP_COLS) quantize_strip<stochastic>(x, block, col, q);
  }
}

}  // namespace spectral
