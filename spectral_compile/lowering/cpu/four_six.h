// What rounding a block to nearest with a given scale costs: how NVFP4's rule "four_six" chooses between two. Errors are
// summed in formats/blocks.py's order: over a block's rows (of the stored matrix) first, then along the block.
#pragma once

#include "lanes.h"
#include "nvfp4.h"
#include "source.h"

namespace spectral {

// Signs do not matter: magnitudes are rounded and compared.
inline f32x16 squared_error(f32x16 x, f32x16 scale, f32x16 inverse, float encode) {
  const f32x16 error = nearest(x * inverse) * scale - as_float(magnitude_bits(x)) * encode;
  return error * error;
}

// Of sixteen blocks in a row: block b is vector b, of the first row or, where `square`, of sixteen. Lane b of the result
// is block b's error.
[[gnu::noinline]] inline f32x16 error_across(const Vectors* values, bool square, const BlockScales& scales,
                                             float encode) {
  Vectors of_block;
  for (int b = 0; b < LANES; ++b) {
    const f32x16 of_all = splat(scales.value[b]), inverse = splat(scales.inverse[b]);
    Vectors errors;
    for (int r = 0; r < (square ? LANES : 1); ++r) errors[r] = squared_error(values[r][b], of_all, inverse, encode);
    of_block[b] = square ? reduce_vectors<Sum, LANES>(errors) : errors[0];
  }
  return reduce_each<Sum>(of_block);
}

// Of sixteen blocks side by side, one a lane; or, where `square`, of the one block that they are together.
[[gnu::noinline]] inline f32x16 error_down(const Vectors& values, bool square, const BlockScales& scales,
                                           float encode) {
  Vectors errors;
  for (int i = 0; i < LANES; ++i) errors[i] = squared_error(values[i], scales.value, scales.inverse, encode);
  return square ? reduce_lanes<Sum>(reduce_each<Sum>(errors)) : reduce_vectors<Sum, LANES>(errors);
}

}  // namespace spectral
