// Sixteen-lane vectors in the GCC/Clang vector extension: the compiler splits them where registers are narrower, so one
// source serves AVX-512, AVX2 and NEON. Lanes never mix but where a shuffle says so.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) && !defined(SPECTRAL_PORTABLE)
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

inline i32x16 max(i32x16 a, i32x16 b) { return a > b ? a : b; }
inline i32x16 min(i32x16 a, i32x16 b) { return a < b ? a : b; }
inline f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }

// --- floats as integers ---------------------------------------------------------------------------------------------
// Magnitudes of floats compare as their bits do, and NaN lies above infinity: an integer maximum never loses a NaN,
// which a floating-point one does.

constexpr int32_t ABS_MASK = 0x7FFFFFFF;
constexpr int32_t EXPONENT_MASK = 0x7F800000;  // also the bits of infinity

inline i32x16 bits(f32x16 v) { return bitcast<i32x16>(v); }
inline f32x16 as_float(i32x16 v) { return bitcast<f32x16>(v); }
inline i32x16 magnitude_bits(f32x16 v) { return bits(v) & ABS_MASK; }

// Across lanes: the largest of all.
inline int32_t max_over_lanes(i32x16 v) {
  int32_t largest = v[0];
  for (int lane = 1; lane < LANES; ++lane) largest = v[lane] > largest ? v[lane] : largest;
  return largest;
}

// Which lane of the pair (a, b) feeds `lane` of one side of a merge at `distance`: see `merge`.
constexpr int merge_index(int distance, int lane, bool upper) {
  return (lane & distance ? LANES : 0) + (lane & ~distance) + (upper ? distance : 0);
}

// Halves the lanes of a and of b, taking maxima of lanes `distance` apart, into one vector: lanes without the bit
// `distance` come from a, lanes with it from b.
template <int distance, int... lane>
inline i32x16 merge(i32x16 a, i32x16 b, std::integer_sequence<int, lane...>) {
  return max(__builtin_shufflevector(a, b, merge_index(distance, lane, false)...),
             __builtin_shufflevector(a, b, merge_index(distance, lane, true)...));
}

// Lane i of the result is the largest lane of v[i]: fifteen merges where sixteen reductions would take 64 steps.
inline i32x16 max_of_each(const i32x16 (&v)[LANES]) {
  constexpr std::make_integer_sequence<int, LANES> lanes;
  i32x16 of2[8], of4[4], of8[2];
  for (int i = 0; i < 8; ++i) of2[i] = merge<1>(v[2 * i], v[2 * i + 1], lanes);
  for (int i = 0; i < 4; ++i) of4[i] = merge<2>(of2[2 * i], of2[2 * i + 1], lanes);
  for (int i = 0; i < 2; ++i) of8[i] = merge<4>(of4[2 * i], of4[2 * i + 1], lanes);
  return merge<8>(of8[0], of8[1], lanes);
}

// --- element types in memory ----------------------------------------------------------------------------------------

struct Bf16 {
  uint16_t bits;
};

inline f32x16 load16(const float* from) { return load<f32x16>(from); }

inline f32x16 load16(const Bf16* from) {
  return bitcast<f32x16>(__builtin_convertvector(load<u16x16>(from), u32x16) << 16);
}

inline void store16(float* to, f32x16 v) { store(to, v); }

// Rounds to nearest, ties to even; NaN stays NaN (its mantissa could otherwise carry into infinity or overflow).
inline void store16(Bf16* to, f32x16 v) {
  u32x16 b = bitcast<u32x16>(v);
  u32x16 rounded = (b + 0x7FFF + ((b >> 16) & 1)) >> 16;
  u32x16 quiet = (b >> 16) | 0x40;
  u32x16 result = magnitude_bits(v) > EXPONENT_MASK ? quiet : rounded;
  store(to, __builtin_convertvector(result, u16x16));
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
