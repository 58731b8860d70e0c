// Decoding the rows of a store; compiled for each instruction set like the kernels of kernels.h.
#pragma once

#include <cstdint>

#include "../common/track_rows.h"

namespace mme {

// Rows in ascending order, as mme_targets/store_codec.py describes them.
struct CodedRows {
  long count, tables;
  const uint8_t* data;
  const int64_t *begins, *ends;  // of each row in `data`
  const uint16_t* frequencies;   // [tables, kContexts, 256]
  const int64_t *table, *rows;   // which table each row has, and which row of the video it is
  const int64_t *depth, *slots;  // planes wanted; [count, planes] where in `out` each goes, or -1
  long planes;
};

// False if memory ran out or the data is damaged. `out`: planes [Gy, Gx, 2].
using DecodeRows = bool (*)(const CodedRows& coded, const RowLayout& layout, int16_t* out);

namespace baseline {
extern const DecodeRows kDecodeRows;
}
namespace avx2 {
extern const DecodeRows kDecodeRows;
}
namespace avx512 {
extern const DecodeRows kDecodeRows;
}

}  // namespace mme
