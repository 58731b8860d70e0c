// SURF's detector and descriptor (Bay, Ess, Tuytelaars, Van Gool 2008) and Shi and Tomasi's corners
// at one pixel or point; mme_targets/backends/reference/interest_points.py explains the first. T is
// float, or a SIMD vector that has +, - and *. Products and sums are rounded one by one, in the
// reference's order, so that floors agree bit for bit.
#pragma once

#include "platform.h"

namespace mme {

constexpr int kFilters = 4;       // sizes of filter an octave
constexpr int kPointMargin = 48;  // px, so far a frame is continued by its border
constexpr int kWindow = 21;       // boxes along a descriptor's side
constexpr int kDiscRadius = 6;    // scales, of the gradients that say where a point is turned to
constexpr int kDisc = 109;        // of them: those less than the radius away
constexpr int kDirections = 72;
constexpr float kSteps = 512.f;  // a descriptor of length 1 is rounded to 1 over this

// Side of a filter's lobe, px; the filter is three of them wide. 3, 5, 7, 9; 5, 9, 13, 17; ...
MME_FN int lobe_side(int octave, int filter) { return (2 << octave) * (filter + 1) + 1; }

// Determinant of the Hessian from its sums of pixels; `area`, `square`: one over the boxes' areas.
template <class T>
MME_FN T hessian(T dxx, T dyy, T dxy, T area, T square, T mixed) {
  const T cross = dxy * square;
  return (dxx * area) * (dyy * area) - (mixed * cross) * cross;
}
constexpr float kMixed = 0.81f;  // weight of the squared mixed derivative: 0.9 squared

struct Peak {
  float x, y, size;
};

// The extremum of a parabola through 27 values c(size, y, x), from the middle: -H^-1 g of central
// differences, by Cramer's rule. Not finite where there is none.
template <class Cube>
MME_FN Peak peak(const Cube& c) {
  const float centre = c(1, 1, 1) + c(1, 1, 1);
  const float gx = 0.5f * (c(1, 1, 2) - c(1, 1, 0)), gy = 0.5f * (c(1, 2, 1) - c(1, 0, 1));
  const float gs = 0.5f * (c(2, 1, 1) - c(0, 1, 1));
  const float xx = (c(1, 1, 2) + c(1, 1, 0)) - centre, yy = (c(1, 2, 1) + c(1, 0, 1)) - centre;
  const float ss = (c(2, 1, 1) + c(0, 1, 1)) - centre;
  const float xy = 0.25f * ((c(1, 2, 2) - c(1, 2, 0)) - (c(1, 0, 2) - c(1, 0, 0)));
  const float xs = 0.25f * ((c(2, 1, 2) - c(2, 1, 0)) - (c(0, 1, 2) - c(0, 1, 0)));
  const float ys = 0.25f * ((c(2, 2, 1) - c(2, 0, 1)) - (c(0, 2, 1) - c(0, 0, 1)));
  // Cofactors of the symmetric matrix.
  const float a = yy * ss - ys * ys, b = xs * ys - xy * ss, d = xy * ys - xs * yy;
  const float e = xx * ss - xs * xs, f = xy * xs - xx * ys, i = xx * yy - xy * xy;
  const float scale = -1.f / ((xx * a + xy * b) + xs * d);
  return {((a * gx + b * gy) + d * gs) * scale, ((b * gx + e * gy) + f * gs) * scale,
          ((d * gx + f * gy) + i * gs) * scale};
}

// The nearest whole number, halves up; of what an int holds.
MME_FN int whole(float value) {
  const float moved = value + 0.5f;
  const int cut = static_cast<int>(moved);
  return cut - (static_cast<float>(cut) > moved);
}

// Scale of a filter's side, whole px: 1.2 for 9, at least one.
MME_FN int scale_of(float side) {
  const int scale = whole(side * static_cast<float>(1.2 / 9));
  return scale > 1 ? scale : 1;
}

// Whether everything that describes a point lies in the frame and its margin.
MME_FN bool described_inside(int x, int y, int scale, int width, int height) {
  const int reach = 15 * scale + 1 - kPointMargin;
  return reach <= x && x <= width - 1 - reach && reach <= y && y <= height - 1 - reach;
}

// Strength of a corner: the smaller eigenvalue of the gradients' products, of which these are sums.
MME_FN float corner_strength(float xx, float xy, float yy) {
  const float a = 0.5f * xx, c = 0.5f * yy, apart = a - c;
  const float strength = (a + c) - root(apart * apart + xy * xy);
  return strength > 0.f ? strength : 0.f;
}

}  // namespace mme
