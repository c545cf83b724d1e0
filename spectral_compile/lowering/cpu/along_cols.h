// Quantising in blocks along the strided axis.
#pragma once

#include "four_six.h"
#include "quantize.h"

namespace spectral {

// A strip is worked on at once: its results are gathered, so that whole cache lines are written, 64 bytes of codes a
// column; and it is wide, as reading a few lines a row from many rows leaves the CPU's own prefetching behind.
constexpr int STRIP_GROUPS = 8;
constexpr int STRIP_COLS = 256;

struct Strip {
  uint64_t codes[STRIP_GROUPS][STRIP_COLS];
  uint8_t scales[STRIP_GROUPS][STRIP_COLS];  // one in tile_rows is there, and one in GROUPS
};

// The codes of 16 x 16 elements with one group a lane, the first of them being number `first` of the tensor.
template <bool stochastic, class Format>
void encode_lanes(const Vectors& values, f32x16 inverse, int64_t first, const Quantization<Format>& q,
                  uint64_t* codes_of_lane) {
  u32x16 random[4];
  if constexpr (stochastic) random_columns(first, q.groups(), q.random, random);
  u32x16 low{}, high{};  // of each lane's 64 bits: elements 0 to 7, and 8 to 15
#pragma GCC unroll 16
  for (int i = 0; i < GROUP; ++i) {
    const f32x16 y = values[i] * inverse;
    const i32x16 codes = encode<stochastic>(y, [&] { return random_byte(random, i); });
    (i < 8 ? low : high) |= bitcast<u32x16>(codes) << (i % 8 * 4);
  }
  low = inverse == 0 ? 0 : low;
  high = inverse == 0 ? 0 : high;
  store(codes_of_lane, __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
  store(codes_of_lane + 8,
        __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
}

// Lane by lane, the bits of the largest magnitudes of the blocks that the bands hold.
template <class Format>
void largest_of_blocks(const Band (&bands)[GROUPS<Format>], bool square, i32x16 (&largest)[BAND_COLS / LANES]) {
  for (int i = 0; i < BAND_COLS / LANES; ++i) {
    largest[i] = i32x16{};
    for (const Band& band : bands) {
      for (const f32x16& value : band[i]) largest[i] = max(largest[i], magnitude_bits(value));
    }
    if (square) largest[i] = reduce_lanes<Larger>(largest[i]);
  }
  if (square && GROUPS<Format> == 2) {
    for (int i = 0; i < BAND_COLS / LANES; i += 2) largest[i] = largest[i + 1] = max(largest[i], largest[i + 1]);
  }
}

// Reads block number `block` of the columns from `col` on, as many as a band has, and finds their scales.
template <class Format>
void scales_of_band(const Source& x, const Quantization<Format>& q, int64_t block, int64_t col,
                    Band (&bands)[GROUPS<Format>], BlockScales (&scales)[BAND_COLS / LANES]) {
  const bool square = q.tile_rows > 1;
  for (int h = 0; h < GROUPS<Format>; ++h) x.read_down(block * Format::BLOCK + h * GROUP, col, bands[h]);
  i32x16 largest[BAND_COLS / LANES];
  largest_of_blocks<Format>(bands, square, largest);
  for (int i = 0; i < BAND_COLS / LANES && col + i * LANES < x.cols; ++i) {
    scales[i] = q.format.scales(largest[i], [&](const BlockScales& candidate, float encode) {
      return error_down(bands[0][i], square, candidate, encode);
    });
  }
}

// Those blocks to row `b` of the strip from `c` on.
template <bool stochastic, class Format>
void quantize_band(const Source& x, const Quantization<Format>& q, int64_t block, int64_t col, Strip& strip, int b,
                   int c) {
  Band bands[GROUPS<Format>];
  BlockScales scales[BAND_COLS / LANES];
  scales_of_band(x, q, block, col, bands, scales);
  for (int i = 0; i < BAND_COLS / LANES && col + i * LANES < x.cols; ++i) {
    store(&strip.scales[b][c + i * LANES], __builtin_convertvector(scales[i].byte, u8x16));
    for (int h = 0; h < GROUPS<Format>; ++h) {
      const int64_t group = (col + i * LANES) * q.groups() + block * GROUPS<Format> + h;
      encode_lanes<stochastic>(bands[h][i], scales[i].inverse, group, q,
                               &strip.codes[b * GROUPS<Format> + h][c + i * LANES]);
    }
  }
}

// The codes and scales of `blocks` x `cols` blocks to their places.
template <class Format>
void write_strip(const Strip& strip, const Quantization<Format>& q, int64_t first_block, int64_t first_col, int blocks,
                 int cols) {
  for (int c = 0; c < cols; ++c) {
    uint8_t* codes = q.codes + ((first_col + c) * q.blocks + first_block) * GROUPS<Format> * CODE_BYTES;
    for (int g = 0; g < blocks * GROUPS<Format>; ++g) store(codes + g * CODE_BYTES, strip.codes[g][c]);
  }
  for (int c = 0; c < cols; c += q.tile_rows) {
    uint8_t* scales = q.scales + (first_col + c) / q.tile_rows * q.blocks + first_block;
    for (int b = 0; b < blocks; ++b) scales[b] = strip.scales[b][c];
  }
}

// Asks for the cache lines that write_strip will write for every `step`-th column: all at once would stall.
template <class Format>
void prefetch_targets(const Quantization<Format>& q, int64_t block, int64_t begin, int64_t end, int step) {
  for (int64_t col = begin; col < end; col += step) {
    __builtin_prefetch(q.codes + (col * q.blocks + block) * GROUPS<Format> * CODE_BYTES, 1);
    __builtin_prefetch(q.scales + col / q.tile_rows * q.blocks + block, 1);
  }
}

template <bool stochastic, class Format>
void quantize_along_cols(const Source& x, const Quantization<Format>& q) {
  constexpr int strip_blocks = STRIP_GROUPS / GROUPS<Format>;
#pragma omp parallel for collapse(2) num_threads(q.threads) schedule(static)
  for (int64_t col = 0; col < x.cols; col += STRIP_COLS) {
    for (int64_t block = 0; block < q.blocks; block += strip_blocks) {
      const int blocks = std::min<int64_t>(strip_blocks, q.blocks - block);
      const int cols = std::min<int64_t>(STRIP_COLS, x.cols - col);
      Strip strip;
      for (int b = 0; b < blocks; ++b) {
        for (int c = 0; c < cols; c += BAND_COLS) {
          quantize_band<stochastic>(x, q, block + b, col + c, strip, b, c);
          prefetch_targets(q, block, col + c + b, std::min(col + c + BAND_COLS, x.cols), strip_blocks);
        }
      }
      write_strip(strip, q, block, col, blocks, cols);
    }
  }
}

}  // namespace spectral
