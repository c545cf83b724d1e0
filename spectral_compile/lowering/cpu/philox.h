// Philox 4x32-10 (Salmon et al., SC 2011) over eight counters at a time; the counter layout is formats/philox.py's.
#pragma once

#include "vectors.h"

namespace spectral {

constexpr int PHILOX_ROUNDS = 10;

struct Random {
  uint64_t seed;
  uint32_t stream;
};

// The 64-bit products of the low words of a with b; the high words of a are ignored.
inline u64x8 multiply_low_words(u64x8 a, uint32_t b) {
#ifdef SPECTRAL_AVX512
  return bitcast<u64x8>(_mm512_mul_epu32(bitcast<__m512i>(a), _mm512_set1_epi64(b)));
#else
  return (a & 0xFFFFFFFFu) * uint64_t{b};
#endif
}

// The four random words of each group, in the low half of each lane.
inline void philox(u64x8 group, Random random, u64x8 (&word)[4]) {
  // Only low words count throughout: what the products and shifts leave above them is cut off at the end.
  u64x8 c0 = group, c1 = group >> 32, c2 = u64x8{} + random.stream, c3{};
  uint32_t k0 = random.seed, k1 = random.seed >> 32;
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    u64x8 product0 = multiply_low_words(c0, 0xD2511F53), product1 = multiply_low_words(c2, 0xCD9E8D57);
    c0 = (product1 >> 32) ^ c1 ^ k0;
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ k1;
    c3 = product0;
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  word[0] = c0 & 0xFFFFFFFFu, word[1] = c1 & 0xFFFFFFFFu, word[2] = c2 & 0xFFFFFFFFu, word[3] = c3 & 0xFFFFFFFFu;
}

// The 16 bytes of each of 16 consecutive groups, group by group.
inline void random_rows(uint64_t first_group, Random random, uint8_t (&bytes)[16][16]) {
  for (int half = 0; half < 2; ++half) {
    u64x8 group = first_group + 8 * half + u64x8{0, 1, 2, 3, 4, 5, 6, 7};
    u64x8 word[4];
    philox(group, random, word);
    u64x8 low = word[0] | word[1] << 32, high = word[2] | word[3] << 32;
    store(bytes[8 * half], __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11));
    store(bytes[8 * half + 4], __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15));
  }
}

// Lane i of words[w] is word w of group first_group + i * stride.
inline void random_columns(uint64_t first_group, uint64_t stride, Random random, u32x16 (&words)[4]) {
  u64x8 even = first_group + stride * u64x8{0, 2, 4, 6, 8, 10, 12, 14};
  u64x8 even_word[4], odd_word[4];
  philox(even, random, even_word);
  philox(even + stride, random, odd_word);
  for (int w = 0; w < 4; ++w) words[w] = bitcast<u32x16>(even_word[w] | odd_word[w] << 32);
}

// Byte i of each lane's sixteen, of what `random_columns` gave.
inline i32x16 random_byte(const u32x16 (&words)[4], int i) {
  return bitcast<i32x16>((words[i / 4] >> (i % 4 * 8)) & 0xFF);
}

}  // namespace spectral
