// Arithmetic of one point of a store's row (mme_targets/store_codec.py has the equations). All of
// it is whole numbers, and equals the NumPy reference bit for bit.
#pragma once

#include <cstdint>

#include "platform.h"

namespace mme {

// Where contexts of residuals, changes and values begin, and their number.
constexpr int kResiduals = 0, kChanges = 10, kValues = 34, kContexts = 43;
// A symbol that stands for a number at the row's end.
constexpr int kEscape = 128;

// What decoding has to know of a store, in the units of `store_codec.Layout`.
struct RowLayout {
  long stride, gy, gx;
  int32_t scale, cells, half;

  // How many bits of a displacement lie below the pixel if steps are 1/2 to 1/256 px, else 0.
  int shift() const {
    for (int bits = 1; bits <= 8; ++bits) {
      if (scale == 65536 >> bits) return bits;
    }
    return 0;
  }
};

struct Point {
  int32_t x, y;
};

// Bits that a number >= 0 takes, at most 8.
MME_FN int length8(int32_t value) {
  return value > 127 ? 8 : value ? 32 - __builtin_clz(static_cast<uint32_t>(value)) : 0;
}

MME_FN int32_t magnitude(int32_t value) { return value < 0 ? -value : value; }

// Context of a residual, by the weights in the line above.
MME_FN uint8_t residual_context(uint8_t above, uint8_t right, uint8_t left) {
  const uint8_t sum = static_cast<uint8_t>(2 * above + right + left);
  return static_cast<uint8_t>((sum >= 1) + (sum >= 2) + (sum >= 4) + (sum >= 7) + (sum >= 12) +
                              (sum >= 18) + (sum >= 26) + (sum >= 40) + (sum >= 70));
}

// Whether one component of both tracks certainly stood on the same pixel.
MME_FN bool same_pixel(int32_t came, int32_t came_slack, int32_t there, int32_t there_slack,
                       const RowLayout& layout) {
  const int32_t a = came * layout.scale + layout.half, b = there * layout.scale + layout.half;
  const int32_t pixel = (a - came_slack) >> 16;
  return pixel == (a + came_slack) >> 16 && pixel == (b - there_slack) >> 16 &&
         pixel == (b + there_slack) >> 16;
}

// a + (b - a) * share / 64, halves up; sixteen bits that wrap around.
MME_FN int16_t between(int16_t a, int16_t b, int32_t share) {
  const int16_t apart = static_cast<int16_t>(b - a);
  return static_cast<int16_t>(a + ((apart * share + 32) >> 6));
}

// Of moves along one axis: the point come to, the next one, and 64ths of the way to it.
struct Way {
  int32_t at, next, share;
};

MME_FN Way on_the_way(int32_t point, int32_t cells, long count) {
  const int32_t most = static_cast<int32_t>(count - 1), to = 64 * point + cells;
  const int32_t moved = (to < 0 ? 0 : to > 64 * most ? 64 * most : to) - 64 * point;
  const int32_t size = magnitude(moved), sign = (moved > 0) - (moved < 0);
  const int32_t at = point + sign * (size >> 6), next = at + sign;
  return {at, next < 0 ? 0 : next > most ? most : next, size & 63};
}

// Plane 0, bilinear, `moves` steps from the point in column i and row j.
template <class Plane>
MME_FN Point bilinear(const Plane& first, int32_t i, int32_t j, Point moves,
                      const RowLayout& layout) {
  const Way x = on_the_way(i, (moves.x * layout.cells) >> 16, layout.gx);
  const Way y = on_the_way(j, (moves.y * layout.cells) >> 16, layout.gy);
  const auto mix = [&](auto value) {
    return between(between(value(first(x.at, y.at)), value(first(x.next, y.at)), x.share),
                   between(value(first(x.at, y.next)), value(first(x.next, y.next)), x.share),
                   y.share);
  };
  const auto of_x = [](Point p) { return static_cast<int16_t>(p.x); };
  const auto of_y = [](Point p) { return static_cast<int16_t>(p.y); };
  return {mix(of_x), mix(of_y)};
}

}  // namespace mme
