// NVFP4's scales, sixteen blocks at a time: formats/nvfp4.py.
#pragma once

#include <cfloat>

#include "e2m1.h"
#include "scales.h"

namespace spectral {

constexpr float LEAST_NORMAL_E4M3 = 0x1p-6f;

// fp32 values from 0 on to what E4M3 holds: to nearest, ties to even; beyond 448 saturates.
inline f32x16 round_to_e4m3(f32x16 value) {
  const f32x16 v = min(value, splat(448.0f));
  const i32x16 b = bits(v);
  const f32x16 normal = as_float((b + 0x7FFFF + (b >> 20 & 1)) & ~0xFFFFF);
  constexpr float step_is_ulp = 1 << 14;  // added to a value, leaves multiples of 2**-9, the subnormals' step
  return v < LEAST_NORMAL_E4M3 ? v + step_is_ulp - step_is_ulp : normal;
}

// The bytes of values that round_to_e4m3 gave.
inline i32x16 to_e4m3(f32x16 value) {
  const i32x16 subnormal = __builtin_convertvector(value * 0x1p9f, i32x16);
  return value < LEAST_NORMAL_E4M3 ? subnormal : (bits(value) >> 20) - (120 << 3);
}

// fp32 values of E4M3 bytes: any, NaN and negative ones too.
inline f32x16 from_e4m3(i32x16 byte) {
  const i32x16 magnitude = byte & 0x7F;
  const f32x16 normal = as_float((magnitude << 20) + (120 << 23));
  const f32x16 subnormal = __builtin_convertvector(magnitude, f32x16) * 0x1p-9f;
  const f32x16 finite = magnitude < 8 ? subnormal : normal;
  const f32x16 value = magnitude == 0x7F ? as_float(splat(QUIET_NAN_BITS)) : finite;
  return as_float(bits(value) | (byte & 0x80) << 24);
}

struct Nvfp4 {
  static constexpr int BLOCK = 16;
  enum Rule { AMAX, HEADROOM, FOUR_SIX };  // in the order of formats/nvfp4.py's SCALES

  Rule rule;
  float encode;  // the tensor's encoding scale

  Nvfp4(int rule, float amax) : rule(static_cast<Rule>(rule)), encode(1) {
    if (amax != 0) encode = 448.0f * 6.0f / amax;
    if (encode > FLT_MAX) encode = FLT_MAX;
  }

  // What code * block scale is multiplied by; NaN for NaN.
  static float tensor_scale(float amax) {
    constexpr float least = 448.0 * 6.0 / FLT_MAX;
    return (amax < least ? least : amax) / (448.0f * 6.0f);
  }

  template <class SquaredError>
  BlockScales scales(i32x16 largest, const SquaredError& squared_error) const {
    const f32x16 exact = as_float(largest) * (encode * static_cast<float>(1.0 / 6));
    const BlockScales six = rounded(rule == HEADROOM ? exact * 1.0625f : exact);
    if (rule != FOUR_SIX) return six;
    const BlockScales four = rounded(exact * 1.5f);
    const i32x16 better = squared_error(four, encode) < squared_error(six, encode);
    return {better ? four.byte : six.byte, better ? four.value : six.value, better ? four.inverse : six.inverse};
  }

  static f32x16 decode_scales(i32x16 bytes) { return from_e4m3(bytes); }

 private:
  BlockScales rounded(f32x16 exact) const {
    const f32x16 value = round_to_e4m3(exact);
    return {to_e4m3(value), value, min(1 / (value * (1 / encode)), splat(FLT_MAX))};
  }
};

}  // namespace spectral
