// The arithmetic of NVFP4, sixteen lanes at a time: formats/nvfp4.py and formats/e2m1.py with integers on fp32 bits.
#pragma once

#include <cfloat>

#include "vectors.h"

namespace spectral {

constexpr int BLOCK = 16;
constexpr int CODE_BYTES = BLOCK / 2;  // of one block

constexpr int32_t ONE_BITS = 0x3F800000, HALF_BITS = 0x3F000000, SIX_BITS = 0x40C00000;

// --- scales ---------------------------------------------------------------------------------------------------------

// What a tensor's block scales are computed from; amax is finite.
struct TensorScale {
  float encode_sixth;  // encoding scale * (1 / 6)
  float decode;        // 1 / encoding scale

  explicit TensorScale(float amax) {
    float encode = 448.0f * 6.0f / amax;
    if (encode > FLT_MAX) encode = FLT_MAX;
    if (amax == 0) encode = 1;
    encode_sixth = encode * static_cast<float>(1.0 / 6);
    decode = 1 / encode;
  }
};

// E4M3 bytes of fp32 values in [0, 448], rounded to nearest, ties to even.
inline i32x16 to_e4m3(f32x16 v) {
  i32x16 b = bits(v);
  i32x16 normal = ((b + 0x7FFFF + ((b >> 20) & 1)) >> 20) - (120 << 3);
  constexpr float step_is_ulp = 1 << 14;  // added to a value, leaves multiples of 2**-9, the subnormals' step
  i32x16 subnormal = bits(v + step_is_ulp) - bits(f32x16{} + step_is_ulp);
  return v < 0x1p-6f ? subnormal : normal;
}

// fp32 values of E4M3 bytes: any, NaN and negative ones too.
inline f32x16 from_e4m3(i32x16 byte) {
  i32x16 magnitude = byte & 0x7F;
  f32x16 normal = as_float((magnitude << 20) + (120 << 23));
  f32x16 subnormal = __builtin_convertvector(magnitude, f32x16) * 0x1p-9f;
  f32x16 value = magnitude < 8 ? subnormal : normal;
  value = magnitude == 0x7F ? as_float(i32x16{} + 0x7FC00000) : value;
  return as_float(bits(value) | ((byte & 0x80) << 24));
}

struct BlockScales {
  i32x16 byte;     // E4M3
  f32x16 inverse;  // what the block's values are multiplied by before rounding

  BlockScales(i32x16 block_amax_bits, TensorScale tensor) {
    byte = to_e4m3(min(as_float(block_amax_bits) * tensor.encode_sixth, f32x16{} + 448.0f));
    inverse = min(1 / (from_e4m3(byte) * tensor.decode), f32x16{} + FLT_MAX);
  }
};

// --- codes ----------------------------------------------------------------------------------------------------------

// Code bits from a magnitude code and the bits of the value whose sign it takes.
inline i32x16 with_sign(i32x16 magnitude_code, i32x16 value_bits) {
  return (magnitude_code & 7) | ((value_bits >> 28) & 8);
}

// The exponent that decides the rounding step, in place: that of |y|, but 0 (biased: 127) where |y| < 2.
inline i32x16 step_exponent(i32x16 magnitude) { return max(magnitude, i32x16{} + ONE_BITS) & EXPONENT_MASK; }

// E2M1 codes by round to nearest, ties to even.
inline i32x16 encode_nearest(f32x16 y) {
  i32x16 magnitude = min(magnitude_bits(y), i32x16{} + SIX_BITS);
  i32x16 exponent = step_exponent(magnitude);
  // An addend of 2**23 steps makes one step the last bit of the sum: the addition itself rounds |y| to k steps. With e
  // the exponent the code is k + 2 e, modulo 8. Twice the biased exponent is 2 e + 254: two steps more in the addend
  // make up for the 254.
  f32x16 sum = as_float(magnitude) + as_float(exponent + (22 << 23) + 2);
  return with_sign(bits(sum) + (exponent >> 22), bits(y));
}

// E2M1 codes by stochastic rounding: random_byte / 256 of a step is added to |y| and the sum truncated.
inline i32x16 encode_stochastic(f32x16 y, i32x16 random_byte) {
  i32x16 magnitude = min(magnitude_bits(y), i32x16{} + SIX_BITS);
  f32x16 step_256th = as_float(step_exponent(magnitude) - (9 << 23));
  i32x16 sum = bits(as_float(magnitude) + __builtin_convertvector(random_byte, f32x16) * step_256th);
  i32x16 from_one_on = (sum >> 22) - 252;  // exponent and one mantissa bit
  i32x16 below_one = -(sum >= HALF_BITS);  // a true comparison is -1
  return with_sign(max(from_one_on, below_one), bits(y));
}

// Sixteen codes into eight bytes, the even lane in the low nibble.
inline u8x8 pack(i32x16 codes) {
  u64x8 pair = bitcast<u64x8>(codes);
  return __builtin_convertvector(pair | pair >> 28, u8x8);
}

inline i32x16 unpack(const uint8_t* bytes) {
  const u64x8 pair = (u64x8{} + load<uint64_t>(bytes)) >> u64x8{0, 8, 16, 24, 32, 40, 48, 56};  // low byte of a lane
  return bitcast<i32x16>((pair & 0xF) | (pair & 0xF0) << 28);
}

// The values of codes 0..15.
inline f32x16 decode(i32x16 codes) {
#ifdef SPECTRAL_AVX512
  const f32x16 table{0, .5, 1, 1.5, 2, 3, 4, 6, -0.f, -.5, -1, -1.5, -2, -3, -4, -6};
  return bitcast<f32x16>(_mm512_permutexvar_ps(bitcast<__m512i>(codes), bitcast<__m512>(table)));
#else
  i32x16 magnitude = codes & 7;
  f32x16 subnormal = __builtin_convertvector(magnitude, f32x16) * 0.5f;
  f32x16 normal = as_float((magnitude + 252) << 22);
  return as_float(bits(magnitude < 2 ? subnormal : normal) | ((codes & 8) << 28));
#endif
}

}  // namespace spectral
