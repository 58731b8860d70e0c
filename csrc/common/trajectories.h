// One step of one track (Eq. 6) and its visibility (Eq. 7). Positions are px, pixel centres are
// integers; flow planes are read by a functor, so that the same lines serve float and half.
#pragma once

#include "median.h"

namespace mme {

// Nearest pixel, halves rounded up.
MME_FN int nearest(float x) { return static_cast<int>(floorf(add(x, 0.5f))); }

// A position far outside must not overflow the conversion to int: every reader clamps anyway.
MME_FN float bounded(float x) { return clamp(x, -1e6f, 1e6f); }

struct Sample {
  float value;
  bool finite;
};

// The flow component at pixel (x, y): median of its 3x3 window, border replicated, then clipped.
// Clipping and median commute, so one clip serves for nine.
template <bool kMedian, class Plane>
MME_FN Sample filtered(const Plane& plane, int x, int y, int width, int height, float bound) {
  x = replicate(x, width), y = replicate(y, height);
  if (!kMedian) {
    const float v = plane(x, y);
    return {clamp(v, -bound, bound), finite(v)};
  }
  const int x0 = replicate(x - 1, width), x2 = replicate(x + 1, width);
  const int y0 = replicate(y - 1, height), y2 = replicate(y + 1, height);
  const float a = plane(x0, y0), b = plane(x, y0), c = plane(x2, y0);
  const float d = plane(x0, y), e = plane(x, y), f = plane(x2, y);
  const float g = plane(x0, y2), h = plane(x, y2), i = plane(x2, y2);
  // Without branches, so that a GPU has the loads of both components in flight at once.
  const uint32_t worst =
      larger(larger(larger(exponent(a), exponent(b)), larger(exponent(c), exponent(d))),
             larger(larger(exponent(e), exponent(f)),
                    larger(exponent(g), larger(exponent(h), exponent(i)))));
  const bool ok = worst != kExponent;
  return {clamp(median9(a, b, c, d, e, f, g, h, i), -bound, bound), ok};
}

MME_FN float lerp(float a, float b, float t) { return add(a, mul(t, add(b, -a))); }

// The flow component at a real position.
template <bool kMedian, bool kBilinear, class Plane>
MME_FN Sample sampled(const Plane& plane, float x, float y, int width, int height, float bound) {
  x = bounded(x), y = bounded(y);
  if (!kBilinear) {
    return filtered<kMedian>(plane, nearest(x), nearest(y), width, height, bound);
  }
  const float left = floorf(x), up = floorf(y);
  const int ix = static_cast<int>(left), iy = static_cast<int>(up);
  const Sample a = filtered<kMedian>(plane, ix, iy, width, height, bound);
  const Sample b = filtered<kMedian>(plane, ix + 1, iy, width, height, bound);
  const Sample c = filtered<kMedian>(plane, ix, iy + 1, width, height, bound);
  const Sample d = filtered<kMedian>(plane, ix + 1, iy + 1, width, height, bound);
  const float fx = add(x, -left), fy = add(y, -up);
  return {lerp(lerp(a.value, b.value, fx), lerp(c.value, d.value, fx), fy),
          a.finite && b.finite && c.finite && d.finite};
}

// Strictly inside the frame (Eq. 7).
MME_FN bool inside(float x, float y, int width, int height) {
  return x > 0.f && x < static_cast<float>(width) && y > 0.f && y < static_cast<float>(height);
}

// One whole track. `flow(step, component)` gives the plane that step reads; `write(step, dx, dy, x,
// y)` takes the displacement of a step and the point it leads to. Returns whether the track is
// visible. A track that reads a value that is not finite stands still from there on.
template <bool kMedian, bool kBilinear, class Flow, class Write>
MME_FN bool track(float x, float y, int length, int width, int height, float bound,
                  const Flow& flow, const Write& write) {
  bool alive = true, visible = inside(x, y, width, height);
  for (int step = 0; step < length; ++step) {
    const Sample dx = sampled<kMedian, kBilinear>(flow(step, 0), x, y, width, height, bound);
    const Sample dy = sampled<kMedian, kBilinear>(flow(step, 1), x, y, width, height, bound);
    alive = alive && dx.finite && dy.finite;
    const float u = alive ? dx.value : 0.f, v = alive ? dy.value : 0.f;
    x = add(x, u), y = add(y, v);
    visible = visible && inside(x, y, width, height);
    write(step, u, v, x, y);
  }
  return alive && visible;
}

}  // namespace mme
