// Rounding a matrix to what its codes and block scales stand for, in place of storing them: code * block scale, written
// as the matrix lies. What a product in a wider format reads.
#pragma once

#include "along_cols.h"
#include "along_rows.h"

namespace spectral {

// Where values go: a contiguous matrix. Its type is told apart at each write, so that the code is compiled once.
struct Values {
  void* data;
  bool bf16;
  int64_t rows, cols;

  void write(int64_t row, int64_t col, i32x16 codes, f32x16 scale) const {
    if (row >= rows || col >= cols) return;
    const f32x16 value = decode(codes) * scale;
    const int64_t at = row * cols + col;
    bf16 ? store_some(static_cast<Bf16*>(data) + at, value, cols - col)
         : store_some(static_cast<float*>(data) + at, value, cols - col);
  }
};

// Sixteen groups of one row, the first of them being number `first` of the tensor; lane g has what group g is scaled by.
template <bool stochastic>
[[gnu::noinline]] void round_groups(const Vectors& values, f32x16 inverse, f32x16 scale, int64_t first, Random random,
                                    int64_t row, int64_t col, const Values& to) {
  uint8_t bytes[LANES][GROUP];
  if constexpr (stochastic) random_rows(first, random, bytes);
  for (int g = 0; g < LANES; ++g) {
    const f32x16 y = values[g] * inverse[g];
    const i32x16 codes = encode<stochastic>(y, [&] { return load_bytes(bytes[g]); });
    to.write(row, col + g * GROUP, inverse[g] == 0 ? i32x16{} : codes, splat(scale[g]));
  }
}

// Sixteen rows of sixteen columns, with one group a lane, the first of them being number `first` of the tensor.
template <bool stochastic>
[[gnu::noinline]] void round_lanes(const Vectors& values, f32x16 inverse, f32x16 scale, int64_t first, int64_t groups,
                                   Random random, int64_t row, int64_t col, const Values& to) {
  u32x16 words[4];
  if constexpr (stochastic) random_columns(first, groups, random, words);
#pragma GCC unroll 16
  for (int i = 0; i < GROUP; ++i) {
    const f32x16 y = values[i] * inverse;
    const i32x16 codes = encode<stochastic>(y, [&] { return random_byte(words, i); });
    to.write(row + i, col, inverse == 0 ? 0 : codes, scale);
  }
}

// A panel is what `quantize_panel` works on.
template <bool stochastic, class Format>
void round_panel(const Source& x, const Quantization<Format>& q, int64_t first_row, int64_t first_group,
                 const Values& to) {
  Vectors values[Format::BLOCK];
  const BlockScales scales = scales_of_panel(x, q, first_row, first_group, values);
  const f32x16 scale = Format::decode_scales(scales.byte);
  for (int64_t row = first_row; row < std::min(first_row + q.tile_rows, x.rows); ++row)
    round_groups<stochastic>(values[row - first_row], scales.inverse, scale, row * q.groups() + first_group, q.random,
                             row, first_group * GROUP, to);
}

template <bool stochastic, class Format>
void round_along_rows(const Source& x, const Quantization<Format>& q, const Values& to) {
#pragma omp parallel for collapse(2) num_threads(q.threads) schedule(static)
  for (int64_t row = 0; row < x.rows; row += q.tile_rows) {
    for (int64_t group = 0; group < q.groups(); group += LANES) round_panel<stochastic>(x, q, row, group, to);
  }
}

// Unlike codes, values are written where they were read: a band at a time, side by side.
template <bool stochastic, class Format>
void round_along_cols(const Source& x, const Quantization<Format>& q, const Values& to) {
#pragma omp parallel for num_threads(q.threads) schedule(static)
  for (int64_t block = 0; block < q.blocks; ++block) {
    for (int64_t col = 0; col < x.cols; col += BAND_COLS) {
      Band bands[GROUPS<Format>];
      BlockScales scales[BAND_COLS / LANES];
      scales_of_band(x, q, block, col, bands, scales);
      for (int i = 0; i < BAND_COLS / LANES && col + i * LANES < x.cols; ++i) {
        const int64_t first = (col + i * LANES) * q.groups() + block * GROUPS<Format>;
        const f32x16 scale = Format::decode_scales(scales[i].byte);
        for (int h = 0; h < GROUPS<Format>; ++h)
          round_lanes<stochastic>(bands[h][i], scales[i].inverse, scale, first + h, q.groups(), q.random,
                                  block * Format::BLOCK + h * GROUP, col + i * LANES, to);
      }
    }
  }
}

}  // namespace spectral
