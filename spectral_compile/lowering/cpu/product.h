// Either side of a product in a wider format: codes to values before it, scales and the low-rank term after it.
#pragma once

#include <algorithm>

#include "e2m1.h"
#include "scales.h"

namespace spectral {

// codes, with the scales of their blocks, to values [rows, cols] = code * block scale * factor, stored contiguous.
template <class Format, class T>
void dequantize(const uint8_t* codes, const uint8_t* scales, int64_t blocks, int64_t tile_rows, int64_t rows,
                int64_t cols, float factor, T* values, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* row_codes = codes + row * blocks * GROUPS<Format> * CODE_BYTES;
    const uint8_t* row_scales = scales + row / tile_rows * blocks;
    for (int64_t first = 0; first * Format::BLOCK < cols; first += LANES) {
      uint8_t scale_bytes[LANES] = {};
      std::memcpy(scale_bytes, row_scales + first, std::min<int64_t>(LANES, blocks - first));
      const f32x16 block_scales = Format::decode_scales(load_bytes(scale_bytes));
      for (int64_t g = 0; g < LANES * GROUPS<Format>; ++g) {
        const int64_t group = first * GROUPS<Format> + g, col = group * GROUP;
        if (col >= cols) break;
        const f32x16 value = decode(unpack(row_codes + group * CODE_BYTES)) * block_scales[g / GROUPS<Format>];
        store_some(values + row * cols + col, value * factor, cols - col);
      }
    }
  }
}

// left [m, rank] (outer) right [rank, n]; where left is null, it is one column of ones.
struct LowRank {
  const float *left, *right;
  int64_t rank;
};

// out [m, n] = product * scale_a * scale_b + term. The scales come one by one: multiplied with each other they may
// underflow. The term is summed in order, and then added.
template <class Product, class Out>
void finish_product(const Product* product, int64_t m, int64_t n, float scale_a, float scale_b, LowRank term, Out* out,
                    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < m; ++row) {
    const float* left = term.left + row * term.rank;
    for (int64_t col = 0; col < n; col += LANES) {
      f32x16 value = load_some(product + row * n + col, n - col) * scale_a * scale_b;
      if (term.rank > 0) {
        const auto right = [&](int64_t r) { return load_some(term.right + r * n + col, n - col); };
        f32x16 sum = (term.left ? left[0] : 1.0f) * right(0);
        for (int64_t r = 1; r < term.rank; ++r) sum += left[r] * right(r);
        value += sum;
      }
      store_some(out + row * n + col, value, n - col);
    }
  }
}

}  // namespace spectral
