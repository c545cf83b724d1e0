// The C functions that Python calls through ctypes: run-time arguments into template parameters, nothing else.
// Pointers that may be null say so; bf16 flags tell bf16 from fp32.

#include <cmath>

#include "along_cols.h"
#include "along_rows.h"
#include "hadamard.h"
#include "mean.h"
#include "mxfp4.h"
#include "nvfp4.h"
#include "product.h"
#include "round.h"

namespace spectral {
namespace {

enum Kind { NVFP4, MXFP4 };

// A quantiser, and where its results go: codes and scales, or the values that they stand for.
struct Request {
  Kind format;
  int rule;
  bool along_rows;
  int tile_rows;
  const int64_t* seed;  // may be null
  uint32_t stream;
  uint8_t *codes, *scales;
  Values values;  // where not null, codes and scales are not written
  int threads;
};

template <class Format>
void quantize(const Format& format, const Source& x, const Request& r) {
  const Random random{r.seed ? static_cast<uint64_t>(*r.seed) : 0, r.stream};
  const int64_t blocks = divide_up(r.along_rows ? x.cols : x.rows, Format::BLOCK);
  const Quantization<Format> q{format, r.tile_rows, random, r.codes, r.scales, blocks, r.threads};
  if (r.values.data && r.along_rows)
    r.seed ? round_along_rows<true>(x, q, r.values) : round_along_rows<false>(x, q, r.values);
  else if (r.values.data)
    r.seed ? round_along_cols<true>(x, q, r.values) : round_along_cols<false>(x, q, r.values);
  else if (r.along_rows)
    r.seed ? quantize_along_rows<true>(x, q) : quantize_along_rows<false>(x, q);
  else
    r.seed ? quantize_along_cols<true>(x, q) : quantize_along_cols<false>(x, q);
}

// What there is of a tensor that holds NaN or infinity: its scale, which is NaN, makes NaN of everything.
void poison(const Source& x, const Request& r) {
  if (const Values& v = r.values; v.data) {
    std::memset(v.data, 0, v.rows * v.cols * (v.bf16 ? sizeof(Bf16) : sizeof(float)));
    return;
  }
  const auto [across, along] = r.along_rows ? std::pair(x.rows, x.cols) : std::pair(x.cols, x.rows);
  const int64_t blocks = divide_up(along, Nvfp4::BLOCK);
  std::memset(r.codes, 0, across * blocks * GROUPS<Nvfp4> * CODE_BYTES);
  std::memset(r.scales, 0, divide_up(across, r.tile_rows) * blocks);
}

// The largest magnitude; NaN where x holds NaN or infinity.
float largest_magnitude(const Source& x, int threads) {
  const int32_t largest = largest_magnitude_bits(x, threads);
  return bitcast<float>(largest >= EXPONENT_MASK ? QUIET_NAN_BITS : largest);
}

// data [rows, cols] with contiguous rows, less row_factor (outer) col_factor where they are not null.
template <class Use>
void with_source(const void* data, int bf16, int64_t rows, int64_t cols, int64_t row_stride, const float* row_factor,
                 const float* col_factor, const Use& use) {
  const auto typed = [&]<class T>(const T* from) {
    const Plain<T> x{from, rows, cols, row_stride};
    row_factor ? use(Reader(Centered<T>{x, row_factor, col_factor}, rows, cols)) : use(Reader(x, rows, cols));
  };
  bf16 ? typed(static_cast<const Bf16*>(data)) : typed(static_cast<const float*>(data));
}

}  // namespace
}  // namespace spectral

extern "C" {

using namespace spectral;

void spectral_amax(const void* data, int bf16, int64_t rows, int64_t cols, int64_t row_stride,
                   const float* row_factor, const float* col_factor, float* largest, int threads) {
  with_source(data, bf16, rows, cols, row_stride, row_factor, col_factor,
              [&](const Source& x) { *largest = largest_magnitude(x, threads); });
}

// format is a Kind, rule one of the format's; seed may be null. Either codes and scales or values [value_rows,
// value_cols], contiguous, are null. amax: what spectral_amax says, or null where nobody asked it.
void spectral_quantize(const void* data, int bf16, int64_t rows, int64_t cols, int64_t row_stride,
                       const float* row_factor, const float* col_factor, int format, int rule, int along_rows,
                       int tile_rows, int hadamard, const int64_t* seed, uint32_t stream, uint8_t* codes,
                       uint8_t* scales, void* values, int bf16_values, int64_t value_rows, int64_t value_cols,
                       const float* amax, float* tensor_scale, int threads) {
  const Values to{values, bf16_values != 0, value_rows, value_cols};
  const Request request{static_cast<Kind>(format), rule, along_rows != 0, tile_rows, seed, stream, codes, scales, to,
                        threads};
  const auto run = [&](const Source& x) {
    if (request.format == MXFP4) {  // no tensor scale: one read
      *tensor_scale = 1;
      return quantize(Mxfp4(rule), x, request);
    }
    const float largest = amax ? *amax : largest_magnitude(x, threads);
    *tensor_scale = Nvfp4::tensor_scale(largest);
    std::isnan(largest) ? poison(x, request) : quantize(Nvfp4(rule, largest), x, request);
  };
  with_source(data, bf16, rows, cols, row_stride, row_factor, col_factor,
              [&](const Source& x) { hadamard ? run(Hadamard(x, request.along_rows)) : run(x); });
}

// values [rows, cols], contiguous: code * block scale * factor, where a scale is that of tile_rows x BLOCK elements.
void spectral_dequantize(const uint8_t* codes, const uint8_t* scales, int format, int64_t blocks, int64_t tile_rows,
                         int64_t rows, int64_t cols, float factor, void* values, int bf16, int threads) {
  const auto run = [&]<class Format>(auto* to) {
    dequantize<Format>(codes, scales, blocks, tile_rows, rows, cols, factor, to, threads);
  };
  const auto run_to = [&](auto* to) {
    format == MXFP4 ? run.template operator()<Mxfp4>(to) : run.template operator()<Nvfp4>(to);
  };
  bf16 ? run_to(static_cast<Bf16*>(values)) : run_to(static_cast<float*>(values));
}

// All but mean may be null: what is not null is written, but see ColumnMean for amax and common_amax.
int spectral_column_mean(const void* data, int bf16, int64_t rows, int64_t cols, int64_t row_stride, int64_t min_rows,
                         float* mean, float* nonzero, float* total, float* common, float* amax, float* common_amax,
                         int threads) {
  const ColumnMean to{mean, nonzero, total, common, amax, common_amax};
  const auto run = [&](auto* x) { return column_mean(x, rows, cols, row_stride, min_rows, to, threads); };
  return bf16 ? run(static_cast<const Bf16*>(data)) : run(static_cast<const float*>(data));
}

// left [m, rank] and right [rank, n] are of rank 0 where there is no term; left may be null where rank is 1. out may be
// product where the element types are the same.
void spectral_finish_product(const void* product, int product_bf16, int64_t m, int64_t n, float scale_a,
                             float scale_b, const float* left, const float* right, int64_t rank, void* out,
                             int out_bf16, int threads) {
  const auto run = [&](auto* from, auto* to) {
    finish_product(from, m, n, scale_a, scale_b, {left, right, rank}, to, threads);
  };
  const auto run_from = [&](auto* from) {
    out_bf16 ? run(from, static_cast<Bf16*>(out)) : run(from, static_cast<float*>(out));
  };
  product_bf16 ? run_from(static_cast<const Bf16*>(product)) : run_from(static_cast<const float*>(product));
}

}  // extern "C"
