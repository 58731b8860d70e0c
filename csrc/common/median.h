// Median of nine by a network of 19 exchanges (Paeth 1990; Smith 1996): no branches, so that lanes
// and threads stay together. T is float, or a SIMD vector for which vmin and vmax are given.
#pragma once

#include "platform.h"

namespace mme {

#if defined(__CUDA_ARCH__)
// One instruction each. They differ from the lines below for NaN, which no reader uses, and in the
// sign of a zero.
MME_FN float vmin(float a, float b) { return fminf(a, b); }
MME_FN float vmax(float a, float b) { return fmaxf(a, b); }
#else
MME_FN float vmin(float a, float b) { return b < a ? b : a; }
MME_FN float vmax(float a, float b) { return a < b ? b : a; }
#endif

template <class T>
MME_FN void exchange(T& a, T& b) {
  const T low = vmin(a, b);
  b = vmax(a, b);
  a = low;
}

template <class T>
MME_FN T median9(T p0, T p1, T p2, T p3, T p4, T p5, T p6, T p7, T p8) {
  exchange(p1, p2), exchange(p4, p5), exchange(p7, p8);
  exchange(p0, p1), exchange(p3, p4), exchange(p6, p7);
  exchange(p1, p2), exchange(p4, p5), exchange(p7, p8);
  p3 = vmax(p0, p3), p5 = vmin(p5, p8);
  exchange(p4, p7);
  p6 = vmax(p3, p6), p4 = vmax(p1, p4), p2 = vmin(p2, p5);
  p4 = vmin(p4, p7);
  exchange(p4, p2);
  p4 = vmax(p6, p4);
  return vmin(p4, p2);
}

// Median of 25 by forgetful selection (Paeth 1990): of a set just too large to miss the median the
// smallest and the largest are dropped and one more value is taken in, until three are left.
// `value(k)` gives each of the 25.
template <int kCount, class T, class Value>
MME_FN T forgetful(T a[14], const Value& value) {
  for (int i = 0; i < kCount / 2; ++i) exchange(a[i], a[kCount - 1 - i]);
  for (int i = 1; i <= (kCount - 1) / 2; ++i) exchange(a[0], a[i]);
  for (int i = kCount / 2; i < kCount - 1; ++i) exchange(a[i], a[kCount - 1]);
  if constexpr (kCount == 3) {
    return a[1];
  } else {
    a[0] = value(28 - kCount);
    return forgetful<kCount - 1>(a, value);
  }
}
template <class T, class Value>
MME_FN T median25(const Value& value) {
  T a[14];
  for (int i = 0; i < 14; ++i) a[i] = value(i);
  return forgetful<14>(a, value);
}

// Three values of a row in ascending order.
template <class T>
struct Sorted3 {
  T low, middle, high;
};

template <class T>
MME_FN Sorted3<T> sort3(T a, T b, T c) {
  exchange(b, c), exchange(a, b), exchange(b, c);
  return {a, b, c};
}

// The same median of nine from three sorted rows: 12 minima and maxima beside the 6 of each sort,
// so that a walk down an image, which sorts each row once, needs 18 a pixel instead of 30.
template <class T>
MME_FN T median_of_sorted(Sorted3<T> p, Sorted3<T> q, Sorted3<T> r) {
  const T low = vmax(vmax(p.low, q.low), r.low);
  const T high = vmin(vmin(p.high, q.high), r.high);
  const Sorted3<T> middle = sort3(p.middle, q.middle, r.middle);
  return sort3(low, middle.middle, high).middle;
}

}  // namespace mme
