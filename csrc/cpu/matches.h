// Interest points of two frames that are each other's nearest inside a window; what is compared is
// what lies in it, a few in a hundred. Descriptors are whole numbers small enough for every
// distance to be exact, in whatever order it is added up.
#pragma once

#include <cfloat>
#include <cstdlib>

#include "wide.h"

namespace mme {
namespace MME_ISA {
namespace {

// One thread's memory: where the second frame's points lie, which they are, the nearest of the
// first frame to each and how far it is; and the nearest to each of the first's.
struct MatchMemory {
  void* all;
  float *x, *y, *distance;
  int *place, *back, *nearest;

  explicit MatchMemory(long room) {
    const long padded = room + kLanes;  // vectors read past the last point
    all = std::malloc(6 * padded * sizeof(float));
    x = static_cast<float*>(all), y = x + padded, distance = y + padded;
    place = reinterpret_cast<int*>(distance + padded), back = place + padded,
    nearest = back + padded;
  }
  ~MatchMemory() { std::free(all); }
  MatchMemory(const MatchMemory&) = delete;
  MatchMemory& operator=(const MatchMemory&) = delete;
};

// Squared.
MME_WIDE float distance_of(const float* one, const float* other, long values) {
  Wide sums = wide(0.f);
  long i = 0;
  for (; i + kLanes <= values; i += kLanes) {
    const Wide apart = load(one + i) - load(other + i);
    sums = madd(apart, apart, sums);
  }
  float total = total_of(sums);
  for (; i < values; ++i) total += (one[i] - other[i]) * (one[i] - other[i]);
  return total;
}

// A frame's points (x, y) and descriptors, and which of the `room` there are.
struct Described {
  const float *points, *descriptors;
  const bool* valid;
};

// Which points of `first` are `mutual`, theirs and the nearest of `second` each other's, and where
// that one lies: `targets` (x, y). Of equal ones the first is the nearest.
void match(const Described& first, const Described& second, long room, long values, float window,
           const MatchMemory& m, float* targets, bool* mutual) {
  long count = 0;
  for (long j = 0; j < room; ++j) {
    if (!second.valid[j]) continue;
    m.x[count] = second.points[2 * j], m.y[count] = second.points[2 * j + 1];
    m.distance[count] = INFINITY;
    m.place[count++] = static_cast<int>(j);
  }
  for (int i = 0; i < kLanes; ++i) m.x[count + i] = m.y[count + i] = INFINITY;
  const Wide reach = wide(window < FLT_MAX ? window : FLT_MAX);  // these lie outside any window
  for (long i = 0; i < room; ++i) {
    m.nearest[i] = -1;
    if (!first.valid[i]) continue;
    const Wide x = wide(first.points[2 * i]), y = wide(first.points[2 * i + 1]);
    float least = INFINITY;
    for (long j = 0; j < count; j += kLanes) {
      const Wide dx = load(m.x + j) - x, dy = load(m.y + j) - y;
      const unsigned outside = above(vmax(vmax(dx, -dx), vmax(dy, -dy)), reach);
      for (unsigned left = ~outside & ((1u << kLanes) - 1); left != 0; left &= left - 1) {
        const long k = j + __builtin_ctz(left);
        const float far = distance_of(first.descriptors + i * values,
                                      second.descriptors + m.place[k] * values, values);
        if (far < least) least = far, m.nearest[i] = static_cast<int>(k);
        if (far < m.distance[k]) m.distance[k] = far, m.back[k] = static_cast<int>(i);
      }
    }
  }
  for (long i = 0; i < room; ++i) {
    const int k = m.nearest[i];
    mutual[i] = k >= 0 && m.back[k] == i;
    targets[2 * i] = mutual[i] ? m.x[k] : 0.f, targets[2 * i + 1] = mutual[i] ? m.y[k] : 0.f;
  }
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
