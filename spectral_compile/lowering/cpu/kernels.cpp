// The C functions that Python calls through ctypes: run-time arguments into template parameters, nothing else.
// Pointers that may be null say so; bf16 flags tell bf16 from fp32.

#include "mean.h"
#include "product.h"
#include "quantize.h"

namespace spectral {
namespace {

constexpr float QUIET_NAN = __builtin_nanf("");

void quantize(const Source& x, bool along_rows, int tile_rows, const int64_t* seed, uint32_t stream, uint8_t* codes,
              uint8_t* scales, float* amax, int threads) {
  const int64_t blocks = divide_up(along_rows ? x.cols : x.rows, BLOCK);
  const int32_t largest = largest_magnitude_bits(x, threads);
  if (largest >= EXPONENT_MASK) {  // NaN or infinity: everything computed from this tensor is to be NaN
    const int64_t across = along_rows ? x.rows : x.cols;
    std::memset(codes, 0, across * blocks * CODE_BYTES);
    std::memset(scales, 0, divide_up(across, tile_rows) * blocks);
    *amax = QUIET_NAN;
    return;
  }
  *amax = bitcast<float>(largest);
  const Random random{seed ? static_cast<uint64_t>(*seed) : 0, stream};
  const Quantization q{tile_rows, TensorScale(*amax), random, codes, scales, blocks, threads};
  if (along_rows)
    seed ? quantize_along_rows<true>(x, q) : quantize_along_rows<false>(x, q);
  else
    seed ? quantize_along_cols<true>(x, q) : quantize_along_cols<false>(x, q);
}

}  // namespace
}  // namespace spectral

extern "C" {

using namespace spectral;

// data [rows, cols] with contiguous rows; row_factor and col_factor are both null or both there; seed may be null.
void spectral_quantize(const void* data, int bf16, int64_t rows, int64_t cols, int64_t row_stride,
                       const float* row_factor, const float* col_factor, int along_rows, int tile_rows,
                       const int64_t* seed, uint32_t stream, uint8_t* codes, uint8_t* scales, float* amax,
                       int threads) {
  const auto run = [&](const Source& x) {
    quantize(x, along_rows, tile_rows, seed, stream, codes, scales, amax, threads);
  };
  const auto run_typed = [&]<class T>(const T* typed) {
    const Plain<T> x{typed, rows, cols, row_stride};
    row_factor ? run(Reader(Centered<T>{x, row_factor, col_factor}, rows, cols)) : run(Reader(x, rows, cols));
  };
  bf16 ? run_typed(static_cast<const Bf16*>(data)) : run_typed(static_cast<const float*>(data));
}

// values [rows, cols], contiguous: code * block scale * factor, where block scales are tile_rows x 16.
void spectral_dequantize(const uint8_t* codes, const uint8_t* scales, int64_t blocks, int64_t tile_rows, int64_t rows,
                         int64_t cols, float factor, void* values, int bf16, int threads) {
  const auto run = [&](auto* to) { dequantize(codes, scales, blocks, tile_rows, rows, cols, factor, to, threads); };
  bf16 ? run(static_cast<Bf16*>(values)) : run(static_cast<float*>(values));
}

// nonzero [rows] may be null: then every row counts; so may total [cols].
void spectral_column_mean(const void* data, int bf16, int64_t rows, int64_t cols, int64_t row_stride,
                          int64_t min_rows, float* mean, float* nonzero, float* total, int threads) {
  const auto run = [&](auto* x) { column_mean(x, rows, cols, row_stride, min_rows, mean, nonzero, total, threads); };
  bf16 ? run(static_cast<const Bf16*>(data)) : run(static_cast<const float*>(data));
}

// left [m] and right [n] may be null; out may be product where the element types are the same.
void spectral_finish_product(const void* product, int product_bf16, int64_t m, int64_t n, float scale_a,
                             float scale_b, const float* left, const float* right, void* out, int out_bf16,
                             int threads) {
  const auto run = [&](auto* from, auto* to) {
    finish_product(from, m, n, scale_a, scale_b, left, right, to, threads);
  };
  const auto run_from = [&](auto* from) {
    out_bf16 ? run(from, static_cast<Bf16*>(out)) : run(from, static_cast<float*>(out));
  };
  product_bf16 ? run_from(static_cast<const Bf16*>(product)) : run_from(static_cast<const float*>(product));
}

}  // extern "C"
