// What is quantised: a matrix of some element type, perhaps less its mean, read as fp32 in groups of sixteen vectors.
#pragma once

#include <algorithm>

#include "elements.h"

namespace spectral {

// Sixteen vectors of sixteen: 256 neighbours in a row, or 16 x 16 elements with a row a vector.
using Vectors = f32x16[LANES];

// What is read at once where blocks run down the columns: sixteen rows, two cache lines of bf16 each.
constexpr int BAND_COLS = 64;
using Band = Vectors[BAND_COLS / LANES];

// Element types and the mean's subtraction end here, behind one virtual call a group: the code that quantises is
// compiled once, not once for each. Elements outside the matrix read as zeros.
struct Source {
  const int64_t rows, cols;

  virtual void read_across(int64_t row, int64_t col, Vectors& out) const = 0;
  virtual void read_down(int64_t row, int64_t col, Band& out) const = 0;
  // Lane by lane, the bits of the largest magnitude in sixteen rows (fewer at the end) of columns [begin, end).
  virtual i32x16 largest_bits(int64_t row, int64_t begin, int64_t end) const = 0;

 protected:
  Source(int64_t rows, int64_t cols) : rows(rows), cols(cols) {}
  ~Source() = default;
};

// A matrix with contiguous rows.
template <class T>
struct Plain {
  const T* data;
  int64_t rows, cols, row_stride;

  // Sixteen neighbours: those outside the matrix read as zeros, or (`inside`) none is.
  f32x16 at(int64_t row, int64_t col) const { return load_some(data + row * row_stride + col, cols - col); }
  f32x16 inside(int64_t row, int64_t col) const { return load16(data + row * row_stride + col); }

  void prefetch(int64_t row, int64_t col) const {
    const char* from = reinterpret_cast<const char*>(data + row * row_stride + col);
    for (size_t line = 0; line < BAND_COLS * sizeof(T); line += 64) __builtin_prefetch(from + line);
  }
};

// The same, less row_factor [rows] (outer) col_factor [cols].
template <class T>
struct Centered {
  Plain<T> x;
  const float *row_factor, *col_factor;

  f32x16 at(int64_t row, int64_t col) const {
    return x.at(row, col) - row_factor[row] * load_some(col_factor + col, x.cols - col);
  }
  f32x16 inside(int64_t row, int64_t col) const {
    return x.inside(row, col) - row_factor[row] * load16(col_factor + col);
  }

  void prefetch(int64_t row, int64_t col) const { x.prefetch(row, col); }
};

template <class Matrix>
class Reader final : public Source {
 public:
  Reader(const Matrix& matrix, int64_t rows, int64_t cols) : Source(rows, cols), matrix(matrix) {}

  void read_across(int64_t row, int64_t col, Vectors& out) const override {
    if (row < rows && col + LANES * LANES <= cols)
      for (int i = 0; i < LANES; ++i) out[i] = matrix.inside(row, col + i * LANES);
    else
      for (int i = 0; i < LANES; ++i) out[i] = row < rows ? matrix.at(row, col + i * LANES) : f32x16{};
  }

  void read_down(int64_t row, int64_t col, Band& out) const override {
    const bool inside = row + LANES <= rows && col + BAND_COLS <= cols;
    for (int i = 0; i < LANES; ++i) {
      matrix.prefetch(row + i + LANES, col);
      if (inside)
        for (int c = 0; c < BAND_COLS / LANES; ++c) out[c][i] = matrix.inside(row + i, col + c * LANES);
      else
        for (int c = 0; c < BAND_COLS / LANES; ++c)
          out[c][i] = row + i < rows ? matrix.at(row + i, col + c * LANES) : f32x16{};
    }
  }

  i32x16 largest_bits(int64_t first_row, int64_t begin, int64_t end) const override {
    i32x16 largest{};
    for (int64_t row = first_row; row < std::min(first_row + LANES, rows); ++row) {
      int64_t col = begin;
      for (; col + LANES <= end; col += LANES) largest = max(largest, magnitude_bits(matrix.inside(row, col)));
      if (col < end) largest = max(largest, magnitude_bits(matrix.at(row, col)));
    }
    return largest;
  }

 private:
  const Matrix matrix;
};

}  // namespace spectral
