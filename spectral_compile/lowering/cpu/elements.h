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
#ifdef SPECTRAL_AVX512  // one instruction where GCC 12 takes five: each word to the upper half of its lane
  constexpr u16x32 upper{0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                         0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  const __m512i words = _mm512_castsi256_si512(load<__m256i>(from));
  return bitcast<f32x16>(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, bitcast<__m512i>(upper), words));
#else
  return bitcast<f32x16>(__builtin_convertvector(load<u16x16>(from), u32x16) << 16);
#endif
}

inline void store16(float* to, f32x16 v) { store(to, v); }

inline void store16(Bf16* to, f32x16 v) {
  store(to, __builtin_convertvector(bitcast<u32x16>(round_to_bf16(v)) >> 16, u16x16));
}

// Two vectors of values that the type holds exactly: no rounding.
inline void store32_exact(float* to, f32x16 a, f32x16 b) {
  store(to, a);
  store(to + LANES, b);
}

inline void store32_exact(Bf16* to, f32x16 a, f32x16 b) {
#ifdef SPECTRAL_AVX512
  constexpr u16x32 upper{1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                         33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  store(to, _mm512_permutex2var_epi16(bitcast<__m512i>(a), bitcast<__m512i>(upper), bitcast<__m512i>(b)));
#else
  store(to, __builtin_convertvector(bitcast<u32x16>(a) >> 16, u16x16));
  store(to + LANES, __builtin_convertvector(bitcast<u32x16>(b) >> 16, u16x16));
#endif
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
