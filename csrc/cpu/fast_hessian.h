// Fast Hessian: SURF's points are maxima of the determinant of the Hessian over x, y and size.
//
// Filters are sums of boxes, and so reads of an integral image. From octave to octave the points
// lie twice as far apart; the columns of the integral image are sorted by their remainder, so that
// vectors read neighbours in every octave. Of the determinants three rows are kept, what a maximum
// is told by.
#pragma once

#include <cstdlib>

#include "wide.h"

#include "../common/interest_points.h"

namespace mme {
namespace MME_ISA {
namespace {

constexpr int kReadPast = 32;  // values behind a row or an image, which vectors may read

typedef uint32_t WideSums __attribute__((vector_size(sizeof(float) * kLanes)));

// Sums of all pixels above and to the left of a point. They wrap round where an image is large; a
// box's comes out right all the same.
struct Integral {
  uint32_t* data;
  long pitch;

  Integral(uint32_t* memory, long width) : data(memory), pitch(width + 1) {}
  static long count(long width, long height) { return (width + 1) * (height + 1) + kReadPast; }

  // Of an image continued by its border `margin` px far.
  void fill(const uint8_t* image, int width, int height, int margin) const {
    const int wide = width + 2 * margin, tall = height + 2 * margin;
    for (int x = 0; x <= wide; ++x) data[x] = 0;
    for (int y = 0; y < tall; ++y) {
      const uint8_t* from = image + static_cast<long>(replicate(y - margin, height)) * width;
      const uint32_t* above = data + y * pitch + 1;
      uint32_t *to = data + (y + 1) * pitch, sum = 0;
      *to++ = 0;
      for (int x = 0; x < margin; ++x) *to++ = (sum += from[0]) + *above++;
      for (int x = 0; x < width; ++x) *to++ = (sum += from[x]) + *above++;
      for (int x = 0; x < margin; ++x) *to++ = (sum += from[width - 1]) + *above++;
    }
  }
};

// An integral image whose columns are sorted by their remainder of 2^octave.
struct Sorted {
  const uint32_t* data;
  int octave;
  long group, pitch;

  Sorted(const Integral& sums, int width, int height, int o, uint32_t* memory)
      : data(o == 0 ? sums.data : memory),
        octave(o),
        group(o == 0 ? sums.pitch : ((width + 1L) >> o) + 1),
        pitch(group << o) {
    if (o == 0) return;
    const int step = 1 << o;
    for (int y = 0; y <= height; ++y) {
      const uint32_t* from = sums.data + y * sums.pitch;
      for (int r = 0; r < step && r <= width; ++r) {
        uint32_t* to = memory + y * pitch + r * group;
        const int count = ((width - r) >> o) + 1;
        for (int i = 0; i < count; ++i) to[i] = from[(i << o) + r];
      }
    }
  }
  static long count(long width, long height) { return (width + 17) * (height + 1) + kReadPast; }

  const uint32_t* at(int y, int x) const {
    return data + y * pitch + (x & ((1 << octave) - 1)) * group + (x >> octave);
  }
};

MME_WIDE WideSums load_sums(const uint32_t* p) {
  WideSums a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}

// Four corners of a box, at the first point of a row; from there on they move along it.
struct Box {
  const uint32_t *top_left, *top_right, *low_left, *low_right;

  Box(const Sorted& sums, int y, int x, int top, int left, int tall, int wide)
      : top_left(sums.at(y + top, x + left)),
        top_right(sums.at(y + top, x + left + wide)),
        low_left(sums.at(y + top + tall, x + left)),
        low_right(sums.at(y + top + tall, x + left + wide)) {}
  MME_WIDE WideSums sum(long i) const {
    return load_sums(low_right + i) - load_sums(top_right + i) - load_sums(low_left + i) +
           load_sums(top_left + i);
  }
};

MME_WIDE Wide signed_float(WideSums a) { return to_float((WideInt)a); }

// A row of determinants of one filter: `row` is counted in steps. Zero where it does not fit.
void hessian_row(const Sorted& sums, int filter, int row, int width, int height, int columns,
                 float* out) {
  const int lobe = lobe_side(sums.octave, filter), side = 3 * lobe, reach = side / 2;
  const int step = 1 << sums.octave, y = row * step;
  const int first = (reach + step - 1) >> sums.octave;
  const int count = width - 1 - reach < 0 ? 0 : ((width - 1 - reach) >> sums.octave) - first + 1;
  if (y < reach || y >= height - reach || count < 1) {
    __builtin_memset(out, 0, sizeof(float) * columns);
    return;
  }
  const int x = first * step, along = 2 * lobe - 1, half = lobe / 2;
  // Three lobes beside each other, of weights 1, -2, 1: all of them less three times the middle.
  const Box xx(sums, y, x, 1 - lobe, -reach, along, side);
  const Box xx_middle(sums, y, x, 1 - lobe, -half, along, lobe);
  const Box yy(sums, y, x, -reach, 1 - lobe, side, along);
  const Box yy_middle(sums, y, x, -half, 1 - lobe, lobe, along);
  const Box one(sums, y, x, -lobe, -lobe, lobe, lobe), two(sums, y, x, 1, 1, lobe, lobe);
  const Box three(sums, y, x, -lobe, 1, lobe, lobe), four(sums, y, x, 1, -lobe, lobe, lobe);
  const Wide area = wide(static_cast<float>(1. / (lobe * along)));
  const Wide square = wide(static_cast<float>(1. / (lobe * lobe))), mixed = wide(kMixed);
  for (int i = 0; i < count; i += kLanes) {
    const Wide dxx = signed_float(xx.sum(i) - 3 * xx_middle.sum(i));
    const Wide dyy = signed_float(yy.sum(i) - 3 * yy_middle.sum(i));
    const Wide dxy = signed_float(one.sum(i) + two.sum(i) - (three.sum(i) + four.sum(i)));
    store(out + first + i, hessian(dxx, dyy, dxy, area, square, mixed));
  }
  __builtin_memset(out, 0, sizeof(float) * first);
  for (int i = first + count; i < columns; ++i) out[i] = 0.f;
}

// A maximum: strength in the key's upper half, so that the stronger and, of equal ones, the first
// has the larger key. `side` is not finite where a parabola has no peak within a step.
struct Maximum {
  uint64_t key;
  float x, y, side;

  float strength() const {
    const uint32_t bits = static_cast<uint32_t>(key >> 32);
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
  }
};

// The larger key first: the order of positive floats is that of their bits.
MME_WIDE uint64_t key_of(float strength, long place) {
  uint32_t bits;
  __builtin_memcpy(&bits, &strength, sizeof bits);
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(place));
}
template <class T>
int larger_key_first(const void* a, const void* b) {
  const uint64_t one = static_cast<const T*>(a)->key, two = static_cast<const T*>(b)->key;
  return (one < two) - (one > two);
}

// Three rows of each filter's determinants, and the maxima found in them.
struct Layers {
  float* rows;
  long pitch;

  static long count(long width) { return 3L * kFilters * (width + kReadPast); }
  float* row(int filter, int y) const { return rows + (filter * 3 + y % 3) * pitch; }

  // Adds the maxima of row y of a middle layer to `found`; `place` is that of its first pixel.
  long maxima(int filter, int y, int octave, int columns, float threshold, long place,
              Maximum* found) const {
    const float* at[3][3];
    for (int k = 0; k < 3; ++k) {
      for (int i = 0; i < 3; ++i) at[k][i] = row(filter + k - 1, y + i - 1);
    }
    const auto three = [&](int k, int i, int x) __attribute__((always_inline)) {
      const float* p = at[k][i] + x;
      return vmax(vmax(load(p - 1), load(p + 1)), load(p));
    };
    const float step = static_cast<float>(1 << octave);
    const float side = static_cast<float>(3 * lobe_side(octave, filter));
    const float spacing = side - static_cast<float>(3 * lobe_side(octave, filter - 1));
    long count = 0;
    for (int x = 1; x < columns - 1; x += kLanes) {
      const Wide value = load(at[1][1] + x);
      Wide most = vmax(vmax(load(at[1][1] + x - 1), load(at[1][1] + x + 1)), wide(threshold));
      unsigned left = above(value, most);
      if (columns - 1 - x < kLanes) left &= (1u << (columns - 1 - x)) - 1;
      if (left == 0) continue;
      left &= above(value, vmax(three(1, 0, x), three(1, 2, x)));
      if (left == 0) continue;
      most = vmax(three(0, 1, x), three(2, 1, x));
      most = vmax(vmax(most, vmax(three(0, 0, x), three(0, 2, x))),
                  vmax(three(2, 0, x), three(2, 2, x)));
      for (left &= above(value, most); left != 0; left &= left - 1) {
        const int column = x + __builtin_ctz(left);
        const Peak moved = peak([&](int k, int i, int j) { return at[k][i][column + j - 1]; });
        const bool near =
            std::fabs(moved.x) <= 1.f && std::fabs(moved.y) <= 1.f && std::fabs(moved.size) <= 1.f;
        found[count++] = {key_of(at[1][1][column], place + column),
                          step * (static_cast<float>(column) + moved.x),
                          step * (static_cast<float>(y) + moved.y),
                          near ? side + spacing * moved.size : INFINITY};
      }
    }
    return count;
  }
};

// Maxima of an image at most: no two are neighbours in one layer.
long most_maxima(long width, long height, int octaves) {
  long total = 0;
  for (int o = 0; o < octaves; ++o) {
    const long w = ((width - 1) >> o) + 1, h = ((height - 1) >> o) + 1;
    total += 2 * ((w + 1) / 2) * ((h + 1) / 2);
  }
  return total;
}

struct SurfPoints {
  float *places, *sides, *strengths;  // (x, y), filters' sides and determinants
};

// One thread's memory for images of one size.
struct HessianMemory {
  void* all;
  uint32_t *sums, *sorted;
  float* rows;
  Maximum* found;

  HessianMemory(long width, long height, int octaves) {
    const long whole = Integral::count(width, height), parts = Sorted::count(width, height);
    const long kept = Layers::count(width), most = most_maxima(width, height, octaves);
    all = std::malloc(most * sizeof(Maximum) + (whole + parts + kept) * sizeof(float));
    found = static_cast<Maximum*>(all);
    sums = reinterpret_cast<uint32_t*>(found + most);
    sorted = sums + whole;
    rows = reinterpret_cast<float*>(sorted + parts);
  }
  ~HessianMemory() { std::free(all); }
  HessianMemory(const HessianMemory&) = delete;
  HessianMemory& operator=(const HessianMemory&) = delete;
};

// The strongest `most` points of an image that have a peak and whose window lies in the frame and
// its margin, the strongest first; returns how many. `out` has room for `most`.
long surf_points(const uint8_t* image, int width, int height, int octaves, float threshold,
                 long most, const HessianMemory& m, SurfPoints out) {
  const Integral sums(m.sums, width);
  sums.fill(image, width, height, 0);
  const Layers layers{m.rows, static_cast<long>(width) + kReadPast};
  long count = 0, place = 0;
  for (int octave = 0; octave < octaves; ++octave) {
    const Sorted sorted(sums, width, height, octave, m.sorted);
    const int columns = ((width - 1) >> octave) + 1, rows = ((height - 1) >> octave) + 1;
    const long area = static_cast<long>(rows) * columns;
    for (int y = 0; y < rows; ++y) {
      for (int k = 0; k < kFilters; ++k) {
        hessian_row(sorted, k, y, width, height, columns, layers.row(k, y));
      }
      for (int k = 1; k <= 2 && y >= 2; ++k) {
        count += layers.maxima(k, y - 1, octave, columns, threshold,
                               place + (k - 1) * area + (y - 1L) * columns, m.found + count);
      }
    }
    place += 2 * area;
  }
  std::qsort(m.found, count, sizeof(Maximum), larger_key_first<Maximum>);
  long kept = 0;
  for (long i = 0; i < count && i < most; ++i) {
    const Maximum& at = m.found[i];
    if (!finite(at.side) ||
        !described_inside(whole(at.x), whole(at.y), scale_of(at.side), width, height)) {
      continue;
    }
    out.places[2 * kept] = at.x, out.places[2 * kept + 1] = at.y;
    out.sides[kept] = at.side, out.strengths[kept++] = at.strength();
  }
  return kept;
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
