// Rounding a matrix to what its codes and block scales stand for, in place of storing them: code * block scale, written
// as the matrix lies. What a product in a wider format reads.
#pragma once

#include "along_cols.h"
#include "along_rows.h"

namespace spectral {

// Where values go: a contiguous matrix of bf16 or fp32, which hold them exactly. What lies outside it is not written.
struct Values {
  void* data;
  bool bf16;
  int64_t rows, cols;

  // Sixteen vectors of sixteen to a row.
  void write_across(int64_t row, int64_t col, const Vectors& values) const {
    write(row, col, LANES, [&](int i) { return values[i]; });
  }

  // Sixteen rows, as many columns as a band has.
  void write_down(int64_t row, int64_t col, const Band& band) const {
    for (int r = 0; r < LANES; ++r) write(row + r, col, BAND_COLS / LANES, [&](int i) { return band[i][r]; });
  }

 private:
  // value(0), value(1) ... to a row: `count` vectors, an even number. Edges and types are told apart here, once for all of them.
  template <class Value>
  void write(int64_t row, int64_t col, int count, const Value& value) const {
    if (row >= rows) return;
    const int64_t at = row * cols + col, left = cols - col;
    bf16 ? write(static_cast<Bf16*>(data) + at, left, count, value)
         : write(static_cast<float*>(data) + at, left, count, value);
  }

  template <class T, class Value>
  static void write(T* to, int64_t left, int count, const Value& value) {
    if (left >= count * LANES)
      for (int i = 0; i < count; i += 2) store32_exact(to + i * LANES, value(i), value(i + 1));
    else
      for (int i = 0; i * LANES < left; ++i) store_some(to + i * LANES, value(i), left - i * LANES);
  }
};

// Sixteen groups of one row, in place, the first of them being number `first` of the tensor; lane g is of group g.
template <bool stochastic>
[[gnu::noinline]] void round_groups(Vectors& values, const BlockScales& scales, int64_t first, Random random) {
  uint8_t bytes[LANES][GROUP];
  if constexpr (stochastic) random_rows(first, random, bytes);
  float inverse_of[LANES], scale_of[LANES];  // in memory: a lane to all lanes then costs nothing
  store(inverse_of, scales.inverse);
  store(scale_of, scales.value);
#pragma GCC unroll 4
  for (int g = 0; g < LANES; ++g) {
    const f32x16 y = values[g] * inverse_of[g];
    values[g] = round_to_e2m1<stochastic>(y, [&] { return load_bytes(bytes[g]); }) * scale_of[g];
  }
}

// Sixteen rows of sixteen columns, in place, with one group a lane, the first of them being number `first` of the
// tensor.
template <bool stochastic>
[[gnu::noinline]] void round_lanes(Vectors& values, const BlockScales& scales, int64_t first, int64_t groups,
                                   Random random) {
  const f32x16 inverse = scales.inverse, scale = scales.value;
  u32x16 words[4];
  if constexpr (stochastic) random_columns(first, groups, random, words);
#pragma GCC unroll 16
  for (int i = 0; i < GROUP; ++i)
    values[i] = round_to_e2m1<stochastic>(values[i] * inverse, [&] { return random_byte(words, i); }) * scale;
}

// A panel is what `quantize_panel` works on.
template <bool stochastic, class Format>
void round_panel(const Source& x, const Quantization<Format>& q, int64_t first_row, int64_t first_group,
                 const Values& to) {
  Vectors values[Format::BLOCK];
  const BlockScales scales = scales_of_panel(x, q, first_row, first_group, values);
  for (int64_t row = first_row; row < std::min(first_row + q.tile_rows, x.rows); ++row) {
    Vectors& of_row = values[row - first_row];
    round_groups<stochastic>(of_row, scales, row * q.groups() + first_group, q.random);
    to.write_across(row, first_group * GROUP, of_row);
  }
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
      for (int h = 0; h < GROUPS<Format>; ++h) {
        for (int i = 0; i < BAND_COLS / LANES && col + i * LANES < x.cols; ++i) {
          const int64_t group = (col + i * LANES) * q.groups() + block * GROUPS<Format> + h;
          round_lanes<stochastic>(bands[h][i], scales[i], group, q.groups(), q.random);
        }
        to.write_down(block * Format::BLOCK + h * GROUP, col, bands[h]);
      }
    }
  }
}

}  // namespace spectral
