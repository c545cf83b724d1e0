// Column means, with the rows that are not all zero told apart, and the largest magnitude once the mean is taken out:
// one read of the matrix.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "elements.h"
#include "lanes.h"

namespace spectral {

// Rows are summed in chunks of fixed size, in fp32, and the chunks' sums in fp64, in order: the same bits for any
// number of threads, with the rounding error of a short sum.
constexpr int64_t CHUNK_ROWS = 64;

// So many columns are worked on at once: their sums, minima and maxima stay in the first-level cache, and enough of each
// row is read in one go for the CPU's own prefetching.
constexpr int64_t STRIP = 1024;

// Of the rows in a chunk that count: as many rows [chunks, cols] as there are chunks.
struct ChunkSums {
  std::unique_ptr<float[]> sum, least, largest;  // the latter two may be null

  ChunkSums(int64_t chunks, int64_t cols, bool extremes)
      : sum(new float[chunks * cols]),
        least(extremes ? new float[chunks * cols] : nullptr),
        largest(extremes ? new float[chunks * cols] : nullptr) {}
};

template <class T>
bool has_nonzero(const T* row, int64_t cols) {
  for (int64_t col = 0; col < cols; col += LANES) {  // nearly always the first vector tells
    if (reduce_lanes<Larger>(magnitude_bits(load_some(row + col, cols - col)))[0] != 0) return true;
  }
  return false;
}

// Of columns [begin, end), in memory that is added to.
struct Sums {
  float *sum, *least, *largest;
};

// Adds `count` rows in order, which are read side by side so that the sums are loaded and stored once for all of them.
template <int count, bool extremes, class T>
void add_rows(const T* const* rows, int64_t begin, int64_t end, const Sums& to) {
  for (int64_t col = begin; col < end; col += LANES) {
    const int64_t left = end - col;
    f32x16 sum = load_some(to.sum + col, left), low, high;
    if constexpr (extremes) low = load_some(to.least + col, left), high = load_some(to.largest + col, left);
    for (int r = 0; r < count; ++r) {
      const f32x16 value = load_some(rows[r] + col, left);
      sum += value;
      if constexpr (extremes) low = min(value, low), high = max(value, high);
    }
    store_some(to.sum + col, sum, left);
    if constexpr (extremes) store_some(to.least + col, low, left), store_some(to.largest + col, high, left);
  }
}

template <bool extremes, class T>
[[gnu::noinline]] void sum_rows(const T* const* rows, int64_t count, int64_t cols, const Sums& to) {
  std::fill(to.sum, to.sum + cols, 0.0f);
  if constexpr (extremes) std::fill(to.least, to.least + cols, INFINITY);
  if constexpr (extremes) std::fill(to.largest, to.largest + cols, -INFINITY);
  for (int64_t begin = 0; begin < cols; begin += STRIP) {
    const int64_t end = std::min(begin + STRIP, cols);
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) add_rows<4, extremes>(rows + r, begin, end, to);
    for (; r < count; ++r) add_rows<1, extremes>(rows + r, begin, end, to);
  }
}

// Rows [begin, end) to row `chunk` of `to`; where nonzero is not null, nonzero[row] = 1 if the row has a nonzero, and
// rows without one do not count. (To leave zeros out of a sum that starts with 0 changes no bit of it.)
template <class T>
void sum_chunk(const T* x, int64_t chunk, int64_t rows, int64_t cols, int64_t row_stride, float* nonzero,
               const ChunkSums& to) {
  const T* counted[CHUNK_ROWS];
  int64_t count = 0;
  for (int64_t row = chunk * CHUNK_ROWS; row < std::min((chunk + 1) * CHUNK_ROWS, rows); ++row) {
    const T* from = x + row * row_stride;
    const bool counts = !nonzero || has_nonzero(from, cols);
    if (nonzero) nonzero[row] = counts;
    if (counts) counted[count++] = from;
  }
  float* sum = &to.sum[chunk * cols];
  if (to.least)
    sum_rows<true>(counted, count, cols, {sum, &to.least[chunk * cols], &to.largest[chunk * cols]});
  else
    sum_rows<false>(counted, count, cols, {sum, nullptr, nullptr});
}

// What may be asked of a matrix [rows, cols]; any but mean may be null.
struct ColumnMean {
  float* mean;     // [cols], over the rows that count: those with a nonzero where `nonzero` is asked for, else all
  float* nonzero;  // [rows]
  float* total;    // [cols]: the sum
  float* common;   // [cols]: the mean where all rows count, else 0
  float* amax;         // []: largest magnitude less the mean in the rows that count,
  float* common_amax;  // []: and less the common mean; both stay unwritten, and false is returned, where a sum is not
                       // finite or there is no mean
};

// Zeros for means below min_rows rows that count.
template <class T>
bool column_mean(const T* x, int64_t rows, int64_t cols, int64_t row_stride, int64_t min_rows, const ColumnMean& to,
                 int threads) {
  const int64_t chunks = divide_up(rows, CHUNK_ROWS);
  const ChunkSums partial(chunks, cols, to.amax != nullptr);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum_chunk(x, chunk, rows, cols, row_stride, to.nonzero, partial);

  const int64_t count = to.nonzero ? std::count(to.nonzero, to.nonzero + rows, 1.0f) : rows;
  bool finite = true;
  float largest = 0, largest_common = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(&& : finite) \
    reduction(max : largest, largest_common)
  for (int64_t col = 0; col < cols; ++col) {
    double sum = 0;
    float low = INFINITY, high = -INFINITY;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t at = chunk * cols + col;
      sum += partial.sum[at];
      if (to.amax) low = std::min(low, partial.least[at]), high = std::max(high, partial.largest[at]);
    }
    const float mean = count < min_rows ? 0.0f : static_cast<float>(sum / std::max<int64_t>(count, 1));
    const float common = count == rows ? mean : 0.0f;
    to.mean[col] = mean;
    if (to.total) to.total[col] = static_cast<float>(sum);
    if (to.common) to.common[col] = common;
    // Subtraction is monotone, also once rounded: what lies farthest from the mean is the least or the largest.
    finite = finite && std::isfinite(mean) && std::isfinite(sum);
    largest = std::max({largest, std::fabs(low - mean), std::fabs(high - mean)});
    largest_common = std::max({largest_common, std::fabs(low - common), std::fabs(high - common)});
  }
  if (!to.amax || !finite || count < min_rows || count == 0) return false;
  *to.amax = std::isfinite(largest) ? largest : NAN;
  if (to.common_amax) *to.common_amax = std::isfinite(largest_common) ? largest_common : NAN;
  return true;
}

}  // namespace spectral
