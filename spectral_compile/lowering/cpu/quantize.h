// What both directions of quantising share.
#pragma once

#include "e2m1.h"
#include "lanes.h"
#include "philox.h"
#include "scales.h"
#include "source.h"

namespace spectral {

// How a tensor is quantised, and where its codes and scales go: stored with the block axis last.
template <class Format>
struct Quantization {
  Format format;
  int tile_rows;  // a block's extent across: 1 or Format::BLOCK
  Random random;  // read by stochastic rounding only
  uint8_t *codes, *scales;
  int64_t blocks;  // along the block axis
  int threads;

  int64_t groups() const { return blocks * GROUPS<Format>; }
};

// The bits of the largest magnitude; above those of infinity where the matrix holds NaN.
inline int32_t largest_magnitude_bits(const Source& x, int threads) {
  constexpr int64_t strip = 4096;  // so that a matrix of few long rows keeps every thread busy
  int32_t largest = 0;
#pragma omp parallel for collapse(2) reduction(max : largest) num_threads(threads) schedule(static)
  for (int64_t row = 0; row < x.rows; row += LANES) {
    for (int64_t col = 0; col < x.cols; col += strip) {
      const i32x16 of_strip = x.largest_bits(row, col, std::min(col + strip, x.cols));
      largest = std::max(largest, reduce_lanes<Larger>(of_strip)[0]);
    }
  }
  return largest;
}

}  // namespace spectral
