// Sobel, magnitude and orientation of one pixel (Appendix C, MaskFeat's recipe). Orientation is
// atan2(gx, gy) mod pi. The hard bin is decided by comparing products with a table, never by
// atan2, so that floors agree; for uint8 frames (|g| <= 1020, 9 bins) it is the exact one.
#pragma once

#include "platform.h"

namespace mme {

constexpr int kMaxBins = 36;

// Directions of the bins' edges k*pi/bins, k = 1 ... bins-1, rounded from double.
struct BinTable {
  int bins;
  float cosine[kMaxBins];
  float sine[kMaxBins];
};

inline BinTable bin_table(int bins) {
  BinTable table{};
  table.bins = bins;
  for (int k = 0; k < bins; ++k) {
    const double angle = k * 3.14159265358979323846 / bins;
    table.cosine[k] = 2 * k == bins ? 0.f : static_cast<float>(std::cos(angle));
    table.sine[k] = static_cast<float>(std::sin(angle));
  }
  return table;
}

struct Gradient {
  float x, y;
};

// Unnormalised Sobel splits into sums of single rows, so that a walk down an image takes each row
// once. V is int for uint8 frames (exact) and float otherwise. Additions are ordered, so that
// floors agree bit for bit (doubling is exact).
template <class V>
struct RowSums {
  V across, along;
};

template <class V>
MME_FN RowSums<V> row_sums(V left, V centre, V right) {
  return {right - left, left + centre * 2 + right};
}

template <class V>
MME_FN Gradient sobel(RowSums<V> above, RowSums<V> here, RowSums<V> below) {
  return {static_cast<float>(above.across + here.across * 2 + below.across),
          static_cast<float>(below.along - above.along)};
}

MME_FN float magnitude(Gradient g) {
  const float m = root(add(mul(g.x, g.x), mul(g.y, g.y)));
  return finite(m) ? m : 0.f;
}

// The same direction mod pi, with angle in [0, pi).
MME_FN Gradient upper_half(Gradient g) {
  const bool flip = g.x < 0.f || (g.x == 0.f && g.y < 0.f);
  return flip ? Gradient{-g.x, -g.y} : g;
}

// kBins: the table's number of bins where the compiler may know it, so that it unrolls the loop.
template <int kBins = 0>
MME_FN int hard_bin(Gradient g, const BinTable& table) {
  g = upper_half(g);
  const int bins = kBins > 0 ? kBins : table.bins;
  int bin = 0;
  for (int k = 1; k < bins; ++k) {
    bin += mul(g.x, table.cosine[k]) >= mul(g.y, table.sine[k]) ? 1 : 0;
  }
  return bin;
}

// The two nearest bins of linear binning and the share of the second.
struct SoftBin {
  int first, second;
  float share;
};

// The angle is taken from the nearest of 0, a quarter and a half turn, and what rounding loses when
// the two are added goes to the share: with many bins it would count.
MME_FN SoftBin soft_bin(Gradient g, int bins) {
  g = upper_half(g);
  const float turn = static_cast<float>(bins), height = fabsf(g.y);
  const bool steep = g.x > height, back = g.y < 0.f;
  const float angle = steep ? atan2f(height, g.x) : atan2f(g.x, height);
  const float size = mul(angle / kPi, turn);
  const float base = steep ? mul(0.5f, turn) : (back ? turn : 0.f);
  const float part = steep != back ? -size : size;
  const float phase = add(base, part), low = floorf(phase);
  const int first = static_cast<int>(low);
  return {first % bins, (first + 1) % bins, add(add(phase, -low), add(part, -add(phase, -base)))};
}

}  // namespace mme
