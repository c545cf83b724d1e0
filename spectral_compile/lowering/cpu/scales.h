// What the kernels ask of a format. Each is a struct, run-time rule within, with
//   BLOCK                           how many elements share a scale;
//   scales(largest, squared_error)  the scales of sixteen blocks from the bits of their largest magnitudes (NaN where a
//                                   block holds one); squared_error(scales, encode) says, lane by lane, what rounding
//                                   the blocks to nearest with these scales costs, in units of 1 / encode;
//   decode_scales(bytes)            the fp32 values of scale bytes.
#pragma once

#include "vectors.h"

namespace spectral {

struct BlockScales {
  i32x16 byte;
  f32x16 value;    // that the byte stands for
  f32x16 inverse;  // what the block's values are multiplied by before rounding; 0: the block is poisoned, its codes 0
};

// Codes and random bytes come in groups of sixteen, whatever the block.
constexpr int GROUP = 16;
constexpr int CODE_BYTES = GROUP / 2;

template <class Format>
constexpr int GROUPS = Format::BLOCK / GROUP;  // in a block

}  // namespace spectral
