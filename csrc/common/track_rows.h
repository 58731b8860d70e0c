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

// Plane 0, bilinear, `moves` steps from the point in column i and row j.
template <class Plane>
MME_FN Point bilinear(const Plane& first, int32_t i, int32_t j, Point moves,
                      const RowLayout& layout) {
  const auto clamped = [](int32_t v, long count) {
    const int32_t most = static_cast<int32_t>(64 * (count - 1));
    return v < 0 ? 0 : v > most ? most : v;
  };
  const int32_t x = clamped(64 * i + ((moves.x * layout.cells) >> 16), layout.gx);
  const int32_t y = clamped(64 * j + ((moves.y * layout.cells) >> 16), layout.gy);
  const int32_t across = x & 63, down = y & 63, left = x >> 6, up = y >> 6;
  const int32_t right = left + 1 < layout.gx ? left + 1 : left;
  const int32_t below = up + 1 < layout.gy ? up + 1 : up;
  const Point a = first(left, up), b = first(right, up);
  const Point c = first(left, below), d = first(right, below);
  const auto mix = [=](int32_t p, int32_t q, int32_t r, int32_t s) {
    const int32_t upper = 64 * p + (q - p) * across, lower = 64 * r + (s - r) * across;
    return (64 * upper + (lower - upper) * down + 2048) >> 12;
  };
  return {mix(a.x, b.x, c.x, d.x), mix(a.y, b.y, c.y, d.y)};
}

}  // namespace mme
