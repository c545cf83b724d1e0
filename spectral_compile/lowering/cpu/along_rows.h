// Quantising in blocks along the contiguous axis.
#pragma once

#include "four_six.h"
#include "quantize.h"

namespace spectral {

// The codes of sixteen groups of one row, the first of them being number `first` of the tensor.
template <bool stochastic, class Format>
void encode_groups(const Vectors& values, f32x16 inverse, int64_t first, int64_t groups,
                   const Quantization<Format>& q) {
  uint8_t random[LANES][GROUP];
  if constexpr (stochastic) random_rows(first, q.random, random);
  float inverse_of[LANES];  // in memory: a lane to all lanes then costs nothing
  store(inverse_of, inverse);
  for (int g = 0; g < groups; ++g) {
    const f32x16 y = values[g] * inverse_of[g];
    const i32x16 codes = encode<stochastic>(y, [&] { return load_bytes(random[g]); });
    store(q.codes + (first + g) * CODE_BYTES, inverse_of[g] == 0 ? u8x8{} : pack(codes));
  }
}

// A panel is sixteen neighbouring groups, of one row or of all rows of a tile: their maxima fill one vector. Reads one,
// and finds the scales of its groups, a lane each.
template <class Format>
BlockScales scales_of_panel(const Source& x, const Quantization<Format>& q, int64_t first_row, int64_t first_group,
                            Vectors (&values)[Format::BLOCK]) {
  i32x16 largest[LANES];
  x.read_across(first_row, first_group * GROUP, values[0]);
  for (int g = 0; g < LANES; ++g) largest[g] = magnitude_bits(values[0][g]);
  for (int r = 1; r < q.tile_rows; ++r) {
    x.read_across(first_row + r, first_group * GROUP, values[r]);
    for (int g = 0; g < LANES; ++g) largest[g] = max(largest[g], magnitude_bits(values[r][g]));
  }

  i32x16 of_group = reduce_each<Larger>(largest);
  if constexpr (GROUPS<Format> == 2) of_group = max(of_group, swap_lanes<1>(of_group));
  return q.format.scales(of_group, [&](const BlockScales& candidate, float encode) {
    return error_across(values, q.tile_rows > 1, candidate, encode);
  });
}

template <bool stochastic, class Format>
void quantize_panel(const Source& x, int64_t first_row, int64_t first_group, const Quantization<Format>& q) {
  const int64_t groups = std::min<int64_t>(LANES, q.groups() - first_group);
  Vectors values[Format::BLOCK];
  const BlockScales scales = scales_of_panel(x, q, first_row, first_group, values);
  const u8x16 bytes = __builtin_convertvector(scales.byte, u8x16);
  uint8_t* to = q.scales + first_row / q.tile_rows * q.blocks + first_group / GROUPS<Format>;
  for (int64_t g = 0; g < groups; g += GROUPS<Format>) *to++ = bytes[g];

  for (int64_t row = first_row; row < std::min(first_row + q.tile_rows, x.rows); ++row)
    encode_groups<stochastic>(values[row - first_row], scales.inverse, row * q.groups() + first_group, groups, q);
}

template <bool stochastic, class Format>
void quantize_along_rows(const Source& x, const Quantization<Format>& q) {
#pragma omp parallel for collapse(2) num_threads(q.threads) schedule(static)
  for (int64_t row = 0; row < x.rows; row += q.tile_rows) {
    for (int64_t group = 0; group < q.groups(); group += LANES) quantize_panel<stochastic>(x, row, group, q);
  }
}

}  // namespace spectral
