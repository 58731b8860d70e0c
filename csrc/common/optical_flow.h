// TV-L1 optical flow (Zach, Pock, Bischof 2007) at one pixel: what an iteration does to the flow
// and to its dual variables, and what a warp needs. T is float, or a SIMD vector that has +, -, *
// and the functions of a single float below.
//
// The dual variables are kept multiplied by theta (q = theta p), and the linearised data term
// divided by the length of the gradient, so that an iteration has neither a division for it nor a
// case distinction.
#pragma once

#include "platform.h"

namespace mme {

// Added to squares before their inverse root is taken.
constexpr float kTinyGradient = 1e-10f;  // of the image: such a pixel has no data term
constexpr float kTinySquare = 1e-20f;    // of the flow

MME_FN float madd(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
// c - a * b
MME_FN float nmadd(float a, float b, float c) { return madd(-a, b, c); }
// `a` with its size limited to `limit`, which is not negative.
MME_FN float limited(float a, float limit) {
  const float low = a < limit ? a : limit;
  return low > -limit ? low : -limit;
}
// 1 / sqrt(a); SIMD vectors may do with 12 bits: the error scales the weight of smoothness by that
// little and goes nowhere else.
MME_FN float inverse_root(float a) { return 1.f / root(a); }
MME_FN float rough_inverse(float a) { return 1.f / a; }

// The data term: rho / |g| = c + nx u + ny v (+ nz w, the illumination), which may change the flow
// by at most `limit` = lambda theta |g| along n = g / |g|.
template <class T>
MME_FN T data_step(T residual, T limit) {
  return limited(residual, limit);
}

// One component after the data step `v`: plus theta div p, with p's backward differences.
template <class T>
MME_FN T primal_step(T v, T qx, T qx_left, T qy, T qy_up) {
  return v + ((qx - qx_left) + (qy - qy_up));
}

// What a component's dual variables are divided by: 1 + (tau / theta) |grad u|.
template <class T>
MME_FN T dual_divisor(T ux, T uy, T step, T one, T tiny) {
  const T square = madd(uy, uy, madd(ux, ux, tiny));
  return madd(square * inverse_root(square), step, one);
}

// Its inverse, 1 / (1 + n) as 1 - n / (1 + n): where the flow is flat, n is nearly zero, so that an
// inverse of 12 bits is enough. It changes by that little the length at which p is cut off.
template <class T>
MME_FN T dual_factor(T ux, T uy, T step, T one, T tiny) {
  const T square = madd(uy, uy, madd(ux, ux, tiny));
  const T n = square * inverse_root(square) * step;
  return nmadd(n, rough_inverse(one + n), one);
}

// Weights of the four samples around a position `t` in [0, 1) after the second one: cubic
// convolution (Keys 1981) with parameter `a`. They add up to one.
template <class T>
MME_FN void cubic_weights(T t, T a, T one, T w[4]) {
  const T tt = t * t, s = one - t;
  w[0] = a * t * (s * s);
  w[3] = a * s * tt;
  w[1] = madd(madd(a + one + one, t, -(a + one + one + one)), tt, one);
  w[2] = one - w[0] - w[1] - w[3];
}

// Grey level of RGB: the weights of ITU-R BT.601, uint8 rounded to whole levels as OpenCV does it.
MME_FN float grey_level(uint8_t r, uint8_t g, uint8_t b) {
  return static_cast<float>((9798 * r + 19235 * g + 3735 * b + 16384) >> 15);
}
MME_FN float grey_level(float r, float g, float b) {
  r = clamp(r, 0.f, 255.f), g = clamp(g, 0.f, 255.f), b = clamp(b, 0.f, 255.f);
  return 0.299f * r + 0.587f * g + 0.114f * b;
}

// Where a pixel of a resized image lies in the other: `half` aligns the edges of the images (pixel
// centres half a pixel inside), otherwise the centres of their first pixels.
MME_FN float source_position(int i, float ratio, bool half) {
  return half ? (static_cast<float>(i) + 0.5f) * ratio - 0.5f : static_cast<float>(i) * ratio;
}

}  // namespace mme
