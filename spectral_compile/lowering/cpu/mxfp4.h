// MXFP4's scales, sixteen blocks at a time: formats/mxfp4.py.
#pragma once

#include "scales.h"

namespace spectral {

struct Mxfp4 {
  static constexpr int BLOCK = 32;
  enum Rule { FLOOR, CEIL, RCEIL, EVEN };  // in the order of formats/mxfp4.py's SCALES

  Rule rule;

  explicit Mxfp4(int rule) : rule(static_cast<Rule>(rule)) {}

  template <class SquaredError>
  BlockScales scales(i32x16 largest, const SquaredError&) const {
    const i32x16 poisoned = largest >= EXPONENT_MASK;
    const i32x16 b = min(largest, splat(EXPONENT_MASK)) + (rule == EVEN ? 1 << 21 : 0);
    const i32x16 mantissa = b & 0x7FFFFF;
    i32x16 byte = (b >> 23) - 2;
    if (rule == CEIL) byte -= mantissa > 0;  // a true comparison is -1
    if (rule == RCEIL) byte -= mantissa > 0x400000;
    byte = max(byte, i32x16{});
    // 2**-E has the exponent field 254 - byte, never 0: no finite value has a scale above 2**126.
    byte = poisoned ? 255 : byte;
    return {byte, decode_scales(byte), as_float(poisoned ? 0 : (254 - byte) << 23)};
  }

  static f32x16 decode_scales(i32x16 bytes) {
    const i32x16 power = bytes == 0 ? 1 << 22 : bytes << 23;  // 2**-127 is subnormal
    return as_float(bytes == 255 ? QUIET_NAN_BITS : power);
  }
};

}  // namespace spectral
