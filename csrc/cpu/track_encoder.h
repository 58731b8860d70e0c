// Encoding the rows of a store; compiled for each instruction set like the kernels of kernels.h.
#pragma once

#include <cstdint>

#include "../common/track_rows.h"

namespace mme {

// Rows [count, planes, Gy, Gx, 2] of which the first is row `first` of a video, and those before
// them, at least (planes - 1) * stride.
struct PlainRows {
  const int16_t *rows, *before;
  long count, skipped, planes, first;
};

// What a row is made of: symbols and contexts in steps of eight, numbers beyond what symbols hold.
struct RowSymbols {
  uint8_t* memory;  // of malloc: [steps, 8] symbols, as many contexts, then the numbers
  long steps, numbers;
  bool marked;
};

// The bytes of a row, of malloc.
struct RowBytes {
  uint8_t* memory;
  long size;
};

// `out`: of each row, its memory null at first. Both give false if memory ran out; what was made by
// then is the caller's to free in any case.
struct EncodeRows {
  // Adds to `counts` [kContexts, 256] how often each symbol comes.
  bool (*symbols)(const PlainRows& plain, const RowLayout& layout, RowSymbols* out,
                  int64_t* counts);
  // By tables [kContexts, 256]. Also false if they do not hold the symbols.
  bool (*bytes)(const RowSymbols* rows, long count, const uint16_t* frequencies, RowBytes* out);
};

namespace baseline {
extern const EncodeRows kEncodeRows;
}
namespace avx2 {
extern const EncodeRows kEncodeRows;
}
namespace avx512 {
extern const EncodeRows kEncodeRows;
}

}  // namespace mme
