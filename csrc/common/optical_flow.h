// TV-L1 optical flow (Zach, Pock, Bischof 2007) at one pixel: what an iteration does to the flow
// and to its dual variables, and what a warp needs. T is float, or a SIMD vector that has +, -, *
// and the functions of a single float below.
//
// The dual variables are kept multiplied by theta (q = theta p), and the linearised data term
// divided by the length of the gradient, so that an iteration has neither a division for it nor a
// case distinction.
#pragma once

#include "median.h"

namespace mme {

// See Tvl1Config. `half`: the pyramid is aligned by half pixels; `inside`: no data term where the
// flow leaves the second frame.
struct FlowOptions {
  float tau, lambda, theta, gamma, scale_step, epsilon, cubic;
  int scales, warps, inner, outer, median;
  bool half, patient, inside;
};

constexpr int kMaxLevels = 32;
constexpr int kSmallestSide = 16;  // px; smaller levels are left out

struct LevelSizes {
  int levels, width[kMaxLevels], height[kMaxLevels];

  LevelSizes(int w, int h, const FlowOptions& options) : levels(0) {
    for (int s = 0; s < options.scales && s < kMaxLevels; ++s) {
      if (s > 0) {
        w = static_cast<int>(__builtin_rint(w * static_cast<double>(options.scale_step)));
        h = static_cast<int>(__builtin_rint(h * static_cast<double>(options.scale_step)));
        if (w < kSmallestSide || h < kSmallestSide) break;
      }
      width[s] = w, height[s] = h, levels = s + 1;
    }
  }
};

// When the iterations of one warp end. They are tested after each wave of them.
struct Stop {
  static constexpr int kWave = 10;
  double enough, wait = 0;  // wait: iterations before the error is looked at
  bool patient, moving = true;

  MME_FN Stop(const FlowOptions& o, int width, int height)
      : enough(static_cast<double>(o.epsilon) * o.epsilon * width * height), patient(o.patient) {}

  // Iterations of the next wave, after `done` of `inner`.
  MME_FN int wave(int outer, int done, int inner) const {
    // The patient look first after two iterations, when much is still to be done.
    const int most = patient && done + outer == 0 ? 2 : kWave;
    return inner - done < most ? inner - done : most;
  }
  MME_FN void test(double error, int count) {
    wait -= count;
    if (wait > 0) return;
    moving = error > enough;
    if (patient && enough > 0) wait = error / enough - 1;
  }
};

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
#if defined(__CUDA_ARCH__)
  return vmax(vmin(a, limit), -limit);  // which are one instruction each there
#endif
  const float low = a < limit ? a : limit;
  return low > -limit ? low : -limit;
}
// 1 / sqrt(a); SIMD vectors may do with 12 bits: the error scales the weight of smoothness by that
// little and goes nowhere else.
MME_FN float inverse_root(float a) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.f / root(a);
#endif
}
// 1 / a; to a few ulps where that is quicker.
MME_FN float inverse(float a) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return 1.f / a;
#endif
}
MME_FN float rough_inverse(float a) { return inverse(a); }

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

// The data term's planes; nz is the illumination's, which only gamma > 0 has.
template <class T>
struct DataTerm {
  T constant, nx, ny, limit, nz;
};

// Linearised around the flow (u, v), from a pixel of the warped second image, its gradient, and a
// pixel of the first. `pull` is lambda theta.
template <bool kGamma, class T>
MME_FN DataTerm<T> data_term(T level, T gx, T gy, T level0, T u, T v, T pull, T gamma, T one,
                             T half, T tiny) {
  T square = madd(gy, gy, madd(gx, gx, tiny));
  if (kGamma) square = square + gamma * gamma;
  T scale = inverse_root(square);  // and a Newton step
  scale = scale * nmadd(half * square * scale, scale, one + half);
  const T residual = nmadd(gy, v, nmadd(gx, u, level - level0));
  return {residual * scale, gx * scale, gy * scale, pull * square * scale, gamma * scale};
}

// 1 where a position lies inside [first, last], else 0.
template <class T>
MME_FN T inside_weight(T x, T y, T first, T last_x, T last_y, T zero, T one, T huge) {
  const T beyond = vmax(vmax(x - last_x, first - x), vmax(y - last_y, first - y));
  return vmax(zero, one - vmax(zero, beyond) * huge);
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

// The two pixels that a resized image's pixel `i` lies between, in a row or column of `size`: `low`
// and the next one, of which it takes `part`. `low` is at most `last`.
struct Between {
  int low;
  float part;
};
MME_FN Between between(int i, float ratio, bool half, int size, int last) {
  const float at = clamp(source_position(i, ratio, half), 0.f, static_cast<float>(size - 1));
  const int low = static_cast<int>(at) < last ? static_cast<int>(at) : last;
  return {low, at - static_cast<float>(low)};
}

}  // namespace mme
