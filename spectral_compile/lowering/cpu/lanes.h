// Where lanes mix: shuffles, and reductions over lanes and vectors, all of which combine neighbours first, then pairs of
// neighbours, and so on. For sums that order is formats/blocks.py's.
#pragma once

#include <utility>

#include "vectors.h"

namespace spectral {

constexpr std::make_integer_sequence<int, LANES> EACH_LANE;

struct Larger {
  i32x16 operator()(i32x16 a, i32x16 b) const { return max(a, b); }
};

struct Sum {
  f32x16 operator()(f32x16 a, f32x16 b) const { return a + b; }
};

// Lane i of the result is lane i ^ distance of v.
template <int distance, class V, int... lane>
inline V swap_lanes(V v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (lane ^ distance)...);
}

template <int distance, class V>
inline V swap_lanes(V v) {
  return swap_lanes<distance>(v, EACH_LANE);
}

// Every lane of the result is all lanes of v.
template <class Op, class V>
inline V reduce_lanes(V v) {
  constexpr Op op;
  v = op(v, swap_lanes<1>(v));
  v = op(v, swap_lanes<2>(v));
  v = op(v, swap_lanes<4>(v));
  return op(v, swap_lanes<8>(v));
}

// Each lane of the result is that lane of all `count` vectors.
template <class Op, int count, class V>
inline V reduce_vectors(const V* v) {
  if constexpr (count == 1)
    return v[0];
  else
    return Op()(reduce_vectors<Op, count / 2>(v), reduce_vectors<Op, count / 2>(v + count / 2));
}

// Which lane of the pair (a, b) feeds `lane` of one side of a merge: see `merge`.
constexpr int merge_index(int distance, int lane, bool upper) {
  return (lane & distance ? LANES : 0) + (lane & ~distance) + (upper ? distance : 0);
}

// Halves the lanes of a and of b, combining lanes `distance` apart, into one vector: lanes without the bit `distance`
// come from a, lanes with it from b.
template <class Op, int distance, class V, int... lane>
inline V merge(V a, V b, std::integer_sequence<int, lane...>) {
  return Op()(__builtin_shufflevector(a, b, merge_index(distance, lane, false)...),
              __builtin_shufflevector(a, b, merge_index(distance, lane, true)...));
}

// Lane i of the result is all lanes of v[i]: fifteen merges where sixteen reductions would take 64 steps.
template <class Op, class V>
[[gnu::noinline]] V reduce_each(const V (&v)[LANES]) {
  V of2[8], of4[4], of8[2];
  for (int i = 0; i < 8; ++i) of2[i] = merge<Op, 1>(v[2 * i], v[2 * i + 1], EACH_LANE);
  for (int i = 0; i < 4; ++i) of4[i] = merge<Op, 2>(of2[2 * i], of2[2 * i + 1], EACH_LANE);
  for (int i = 0; i < 2; ++i) of8[i] = merge<Op, 4>(of4[2 * i], of4[2 * i + 1], EACH_LANE);
  return merge<Op, 8>(of8[0], of8[1], EACH_LANE);
}

}  // namespace spectral
