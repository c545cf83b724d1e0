// Either side of a product in a wider format: codes to values before it, scales and the low-rank term after it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "e2m1.h"
#include "scales.h"

namespace spectral {

// codes, with the scales of their blocks, to values [rows, cols] = code * block scale * factor, stored contiguous; in
// bf16 without the factor: exact.
template <class Format, class T>
void dequantize(const uint8_t* codes, const uint8_t* scales, int64_t blocks, int64_t tile_rows, int64_t rows,
                int64_t cols, float factor, T* values, int threads) {
  constexpr int64_t group_count = LANES * GROUPS<Format>;  // that sixteen scales are of
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* row_codes = codes + row * blocks * GROUPS<Format> * CODE_BYTES;
    const uint8_t* row_scales = scales + row / tile_rows * blocks;
    for (int64_t first = 0; first * Format::BLOCK < cols; first += LANES) {
      uint8_t scale_bytes[LANES] = {};
      std::memcpy(scale_bytes, row_scales + first, std::min<int64_t>(LANES, blocks - first));
      float block_scales[LANES];
      store(block_scales, Format::decode_scales(load_bytes(scale_bytes)));
      const uint8_t* from = row_codes + first * GROUPS<Format> * CODE_BYTES;
      T* to = values + row * cols + first * Format::BLOCK;
      const int64_t left = cols - first * Format::BLOCK;
      const auto value = [&](int64_t g) {
        const f32x16 exact = decode(unpack(from + g * CODE_BYTES)) * block_scales[g / GROUPS<Format>];
        if constexpr (std::is_same_v<T, float>)
          return exact * factor;
        else
          return exact;
      };
      if (left >= group_count * GROUP)
        for (int64_t g = 0; g < group_count; g += 2) store32_exact(to + g * GROUP, value(g), value(g + 1));
      else
        for (int64_t g = 0; g * GROUP < left; ++g) store_some(to + g * GROUP, value(g), left - g * GROUP);
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
