// Either side of a product in a wider format: codes to values before it, scales and the rank-one term after it.
#pragma once

#include <algorithm>

#include "nvfp4.h"

namespace spectral {

// codes, with the scales of their blocks, to values [rows, cols] = code * block scale * factor, stored contiguous.
template <class T>
void dequantize(const uint8_t* codes, const uint8_t* scales, int64_t blocks, int64_t tile_rows, int64_t rows,
                int64_t cols, float factor, T* values, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* row_codes = codes + row * blocks * CODE_BYTES;
    const uint8_t* row_scales = scales + row / tile_rows * blocks;
    for (int64_t first = 0; first * BLOCK < cols; first += LANES) {
      uint8_t scale_bytes[LANES] = {};
      std::memcpy(scale_bytes, row_scales + first, std::min<int64_t>(LANES, blocks - first));
      const f32x16 block_scales = from_e4m3(load_bytes(scale_bytes));
      for (int64_t b = 0; b < LANES && (first + b) * BLOCK < cols; ++b) {
        const int64_t col = (first + b) * BLOCK;
        const f32x16 value = decode(unpack(row_codes + (first + b) * CODE_BYTES)) * block_scales[b];
        store_some(values + row * cols + col, value * factor, cols - col);
      }
    }
  }
}

// out [m, n] = product * scale_a * scale_b + left [m] (outer) right [n]; ones where left is null, no such term where
// right is. The scales come one by one: multiplied with each other they may underflow.
template <class Product, class Out>
void finish_product(const Product* product, int64_t m, int64_t n, float scale_a, float scale_b, const float* left,
                    const float* right, Out* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < m; ++row) {
    const float row_left = left ? left[row] : 1.0f;
    for (int64_t col = 0; col < n; col += LANES) {
      f32x16 value = load_some(product + row * n + col, n - col) * scale_a * scale_b;
      if (right) value += row_left * load_some(right + col, n - col);
      store_some(out + row * n + col, value, n - col);
    }
  }
}

}  // namespace spectral
