// E2M1 codes, sixteen lanes at a time: formats/e2m1.py with integers on fp32 bits.
#pragma once

#include "elements.h"

namespace spectral {

constexpr int32_t ONE_BITS = 0x3F800000, HALF_BITS = 0x3F000000, SIX_BITS = 0x40C00000;

// |y|, at most 6, as bits.
inline i32x16 saturated(f32x16 y) { return min(magnitude_bits(y), splat(SIX_BITS)); }

// The exponent that decides the rounding step, in place: that of |y|, but 0 (biased: 127) where |y| < 2.
inline i32x16 step_exponent(i32x16 magnitude) { return max(magnitude, splat(ONE_BITS)) & EXPONENT_MASK; }

// Code bits from a magnitude code and the bits of the value whose sign it takes.
inline i32x16 with_sign(i32x16 magnitude_code, i32x16 value_bits) {
  return (magnitude_code & 7) | ((value_bits >> 28) & 8);
}

// |y| rounded to nearest, ties to the even code: an addend of 2**23 steps makes one step the last bit of the sum, so the
// addition itself rounds.
inline f32x16 nearest(f32x16 y) {
  const i32x16 magnitude = saturated(y);
  const f32x16 addend = as_float(step_exponent(magnitude) + (22 << 23));
  return as_float(magnitude) + addend - addend;
}

// The code of nearest(y) with y's sign. The sum ends in k steps and, with e the exponent, the code is k + 2 e, modulo 8.
// Twice the biased exponent is 2 e + 254: two steps more in the addend make up for the 254.
inline i32x16 encode_nearest(f32x16 y) {
  const i32x16 magnitude = saturated(y), exponent = step_exponent(magnitude);
  const f32x16 sum = as_float(magnitude) + as_float(exponent + (22 << 23) + 2);
  return with_sign(bits(sum) + (exponent >> 22), bits(y));
}

// Stochastic rounding adds random_byte / 256 of a step to |y| and truncates: the bits before that.
inline i32x16 stochastic_sum(f32x16 y, i32x16 random_byte) {
  const i32x16 magnitude = saturated(y);
  const f32x16 step_256th = as_float(step_exponent(magnitude) - (9 << 23));
  return bits(multiply_add(__builtin_convertvector(random_byte, f32x16), step_256th, as_float(magnitude)));
}

inline i32x16 encode_stochastic(f32x16 y, i32x16 random_byte) {
  const i32x16 sum = stochastic_sum(y, random_byte);
  const i32x16 from_one_on = (sum >> 22) - 252;  // exponent and one mantissa bit
  const i32x16 below_one = -(sum >= HALF_BITS);  // a true comparison is -1
  return with_sign(max(from_one_on, below_one), bits(y));
}

// The magnitude that encode_stochastic's code stands for.
inline f32x16 stochastic_magnitude(f32x16 y, i32x16 random_byte) {
  const i32x16 sum = stochastic_sum(y, random_byte);
  const i32x16 kept = sum >= ONE_BITS ? sum & ~((1 << 22) - 1) : splat(HALF_BITS);
  return as_float(sum >= HALF_BITS ? kept : i32x16{});
}

// E2M1 codes by either; random_bytes() is asked where it is needed.
template <bool stochastic, class RandomBytes>
inline i32x16 encode(f32x16 y, const RandomBytes& random_bytes) {
  if constexpr (stochastic)
    return encode_stochastic(y, random_bytes());
  else
    return encode_nearest(y);
}

// decode(encode(y)), in fewer instructions.
template <bool stochastic, class RandomBytes>
inline f32x16 round_to_e2m1(f32x16 y, const RandomBytes& random_bytes) {
  f32x16 magnitude;
  if constexpr (stochastic)
    magnitude = stochastic_magnitude(y, random_bytes());
  else
    magnitude = nearest(y);
  return as_float(bits(magnitude) | (bits(y) & SIGN_MASK));
}

// Sixteen codes into eight bytes, the even lane in the low nibble.
inline u8x8 pack(i32x16 codes) {
  const u64x8 pair = bitcast<u64x8>(codes);
  return __builtin_convertvector(pair | pair >> 28, u8x8);
}

// The sixteen codes in eight bytes, each in the low bits of a lane, with others above it.
inline i32x16 unpack(const uint8_t* bytes) {
  const u32x16 low = u32x16{} + load<uint32_t>(bytes), high = u32x16{} + load<uint32_t>(bytes + 4);
  constexpr i32x16 lane{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  constexpr u32x16 place{0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
  return bitcast<i32x16>((lane < 8 ? low : high) >> place);
}

// The values of the codes in the lanes' low four bits.
inline f32x16 decode(i32x16 codes) {
#ifdef SPECTRAL_AVX512
  const f32x16 table{0, .5, 1, 1.5, 2, 3, 4, 6, -0.f, -.5, -1, -1.5, -2, -3, -4, -6};
  return bitcast<f32x16>(_mm512_permutexvar_ps(bitcast<__m512i>(codes), bitcast<__m512>(table)));
#else
  const i32x16 magnitude = codes & 7;
  const f32x16 subnormal = __builtin_convertvector(magnitude, f32x16) * 0.5f;
  const f32x16 normal = as_float((magnitude + 252) << 22);
  return as_float(bits(magnitude < 2 ? subnormal : normal) | ((codes & 8) << 28));
#endif
}

}  // namespace spectral
