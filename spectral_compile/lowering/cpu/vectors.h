// Sixteen-lane vectors in the GCC/Clang vector extension: the compiler splits them where registers are narrower, so one
// source serves AVX-512, AVX2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) && defined(__AVX512DQ__) && !defined(SPECTRAL_PORTABLE)
#define SPECTRAL_AVX512 1
#include <immintrin.h>
#endif

namespace spectral {

constexpr int LANES = 16;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u64x8 = uint64_t __attribute__((vector_size(64)));
using u16x32 = uint16_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));
using u8x16 = uint8_t __attribute__((vector_size(16)));
using u8x8 = uint8_t __attribute__((vector_size(8)));

template <class To, class From>
inline To bitcast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Unaligned loads and stores.
template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

inline f32x16 splat(float x) { return x - f32x16{}; }  // a sum would turn -0 into 0: an instruction more
inline i32x16 splat(int32_t x) { return x - i32x16{}; }

inline i32x16 max(i32x16 a, i32x16 b) { return a > b ? a : b; }
inline i32x16 min(i32x16 a, i32x16 b) { return a < b ? a : b; }
inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }

// a * b + c, where the product is exact: rounded once or twice is then the same.
inline f32x16 multiply_add(f32x16 a, f32x16 b, f32x16 c) {
#ifdef SPECTRAL_AVX512
  return bitcast<f32x16>(_mm512_fmadd_ps(bitcast<__m512>(a), bitcast<__m512>(b), bitcast<__m512>(c)));
#else
  return a * b + c;
#endif
}

// --- floats as integers ---------------------------------------------------------------------------------------------
// Magnitudes of floats compare as their bits do, and NaN lies above infinity: an integer maximum never loses a NaN,
// which a floating-point one does.

constexpr int32_t ABS_MASK = 0x7FFFFFFF, SIGN_MASK = ~ABS_MASK;
constexpr int32_t EXPONENT_MASK = 0x7F800000;  // also the bits of infinity
constexpr int32_t QUIET_NAN_BITS = 0x7FC00000;

inline i32x16 bits(f32x16 v) { return bitcast<i32x16>(v); }
inline f32x16 as_float(i32x16 v) { return bitcast<f32x16>(v); }
inline i32x16 magnitude_bits(f32x16 v) { return bits(v) & ABS_MASK; }

}  // namespace spectral
