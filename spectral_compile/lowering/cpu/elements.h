// Element types in memory, sixteen at a time: bf16, fp32, bytes.
#pragma once

#include "vectors.h"

namespace spectral {

struct Bf16 {
  uint16_t bits;
};

// v rounded to bf16: to nearest, ties to even. NaN stays NaN, whose mantissa could otherwise carry into infinity or
// overflow.
inline f32x16 round_to_bf16(f32x16 v) {
  const u32x16 b = bitcast<u32x16>(v);
  const u32x16 rounded = v == v ? b + (0x7FFF + (b >> 16 & 1)) : b | QUIET_NAN_BITS;
  return bitcast<f32x16>(rounded & 0xFFFF0000);
}

inline f32x16 load16(const float* from) { return load<f32x16>(from); }

inline f32x16 load16(const Bf16* from) {
  return bitcast<f32x16>(__builtin_convertvector(load<u16x16>(from), u32x16) << 16);
}

inline void store16(float* to, f32x16 v) { store(to, v); }

inline void store16(Bf16* to, f32x16 v) {
  store(to, __builtin_convertvector(bitcast<u32x16>(round_to_bf16(v)) >> 16, u16x16));
}

// Sixteen bytes, zero-extended. (In the portable form in two steps: GCC 12 takes a single one element by element.)
inline i32x16 load_bytes(const uint8_t* from) {
#ifdef SPECTRAL_AVX512
  return bitcast<i32x16>(_mm512_cvtepu8_epi32(load<__m128i>(from)));
#else
  return bitcast<i32x16>(__builtin_convertvector(__builtin_convertvector(load<u8x16>(from), u16x16), u32x16));
#endif
}

// The first `count` of 16 elements: zeros are loaded for the others, and nothing is stored.
template <class T>
inline f32x16 load_some(const T* from, int64_t count) {
  if (count >= LANES) return load16(from);
  T padded[LANES] = {};
  if (count > 0) std::memcpy(padded, from, count * sizeof(T));
  return load16(padded);
}

template <class T>
inline void store_some(T* to, f32x16 v, int64_t count) {
  if (count >= LANES) return store16(to, v);
  T all[LANES];
  store16(all, v);
  std::memcpy(to, all, count * sizeof(T));
}

}  // namespace spectral
