// Column means, with the rows that are not all zero told apart: one read of the matrix.
#pragma once

#include <algorithm>
#include <memory>

#include "elements.h"
#include "lanes.h"

namespace spectral {

// Rows are summed in chunks of fixed size, in fp32, and the chunks' sums in fp64, in order: the same bits for any
// number of threads, with the rounding error of a short sum.
constexpr int64_t CHUNK_ROWS = 64;

// Sums of rows [begin, end) into sum [cols]; where nonzero is not null, nonzero[row] = 1 if the row has a nonzero.
template <class T>
void sum_chunk(const T* x, int64_t begin, int64_t end, int64_t cols, int64_t row_stride, float* sum, float* nonzero) {
  std::fill(sum, sum + cols, 0.0f);
  for (int64_t row = begin; row < end; ++row) {
    i32x16 any{};
    for (int64_t col = 0; col < cols; col += LANES) {
      const int64_t left = cols - col;
      const f32x16 value = load_some(x + row * row_stride + col, left);
      any |= magnitude_bits(value);
      store_some(sum + col, load_some(sum + col, left) + value, left);
    }
    if (nonzero) nonzero[row] = reduce_lanes<Larger>(any)[0] != 0;
  }
}

// mean [cols] of x [rows, cols] over the rows that count: those with a nonzero where nonzero [rows], which is filled,
// is given, else all. Zeros below min_rows such rows. total [cols], where given, is the sum itself.
template <class T>
void column_mean(const T* x, int64_t rows, int64_t cols, int64_t row_stride, int64_t min_rows, float* mean,
                 float* nonzero, float* total, int threads) {
  const int64_t chunks = divide_up(rows, CHUNK_ROWS);
  std::unique_ptr<float[]> sums(new float[chunks * cols]);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * CHUNK_ROWS;
    sum_chunk(x, begin, std::min(begin + CHUNK_ROWS, rows), cols, row_stride, &sums[chunk * cols], nonzero);
  }

  const int64_t count = nonzero ? std::count(nonzero, nonzero + rows, 1.0f) : rows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t col = 0; col < cols; ++col) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk * cols + col];
    mean[col] = count < min_rows ? 0.0f : static_cast<float>(sum / std::max<int64_t>(count, 1));
    if (total) total[col] = static_cast<float>(sum);
  }
}

}  // namespace spectral
