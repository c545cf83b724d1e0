// The random Hadamard transform along the block axis, rounded to bf16: formats/hadamard.py, whose order of sums and
// differences this follows.
#pragma once

#include "lanes.h"
#include "source.h"

namespace spectral {

constexpr f32x16 SIGNS{1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1};

// One round over the lanes of a vector: of lanes a, b that are `distance` apart the sum and the difference.
template <int distance>
inline f32x16 butterfly(f32x16 v) {
  constexpr i32x16 lane{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const f32x16 side = (lane & distance) == 0 ? splat(1.0f) : splat(-1.0f);
  return swap_lanes<distance>(v) + v * side;
}

// The same round over sixteen vectors: each lane on its own.
template <int distance>
inline void butterfly(Vectors& v) {
#pragma GCC unroll 8
  for (int pair = 0; pair < LANES / 2; ++pair) {
    const int i = pair / distance * 2 * distance + pair % distance;
    const f32x16 a = v[i], b = v[i + distance];
    v[i] = a + b;
    v[i + distance] = a - b;
  }
}

// Four times the transform of each vector's lanes. (Compiled once: inlined, it takes GCC seconds.)
[[gnu::noinline]] inline void transform_across(Vectors& vectors) {
  for (f32x16& v : vectors) v = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(v * SIGNS))));
}

// Four times the transform of the sixteen vectors, lane by lane.
[[gnu::noinline]] inline void transform_down(Vectors& vectors) {
  Vectors v;  // a copy stays in registers
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) v[i] = SIGNS[i] < 0 ? -vectors[i] : vectors[i];
  butterfly<1>(v);
  butterfly<2>(v);
  butterfly<4>(v);
  butterfly<8>(v);
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) vectors[i] = v[i];
}

// A source that is transformed along the block axis: along its rows, or down its columns.
class Hadamard final : public Source {
 public:
  Hadamard(const Source& x, bool along_rows) : Source(x.rows, x.cols), x(x), along_rows(along_rows) {}

  void read_across(int64_t row, int64_t col, Vectors& out) const override {
    x.read_across(row, col, out);
    transform_across(out);
    for (f32x16& v : out) v = finish(v);
  }

  void read_down(int64_t row, int64_t col, Band& out) const override {
    x.read_down(row, col, out);
    for (Vectors& vectors : out) {
      transform_down(vectors);
      for (f32x16& v : vectors) v = finish(v);
    }
  }

  // Rounding is monotone: only the largest is rounded.
  i32x16 largest_bits(int64_t row, int64_t begin, int64_t end) const override {
    const i32x16 largest = along_rows ? largest_across(row, begin, end) : largest_down(row, begin, end);
    return bits(finish(as_float(largest)));
  }

 private:
  const Source& x;
  const bool along_rows;

  static f32x16 finish(f32x16 four_times) { return round_to_bf16(four_times * 0.25f); }

  i32x16 largest_across(int64_t first_row, int64_t begin, int64_t end) const {
    i32x16 largest{};
    Vectors vectors;
    for (int64_t row = first_row; row < std::min(first_row + LANES, rows); ++row) {
      for (int64_t col = begin; col < end; col += LANES * LANES) {
        x.read_across(row, col, vectors);
        transform_across(vectors);
        for (const f32x16& v : vectors) largest = max(largest, magnitude_bits(v));
      }
    }
    return largest;
  }

  i32x16 largest_down(int64_t row, int64_t begin, int64_t end) const {
    i32x16 largest{};
    Band band;
    for (int64_t col = begin; col < end; col += BAND_COLS) {
      x.read_down(row, col, band);
      for (Vectors& vectors : band) {
        transform_down(vectors);
        for (const f32x16& v : vectors) largest = max(largest, magnitude_bits(v));
      }
    }
    return largest;
  }
};

}  // namespace spectral
