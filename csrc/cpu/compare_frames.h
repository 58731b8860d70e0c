// Two frames compared under several homographies.
#pragma once

#include "ransac.h"

namespace mme {
namespace MME_ISA {

constexpr int kMostSamples = 16;  // along a square's side
constexpr int kMostModels = 8;

// How two frames are compared: homography by homography, at every `step`-th pixel in squares.
struct Comparison {
  const float *first, *second;
  long height, width;
  int step, samples, border;

  // Differences of samples (x + step i, y) where a homography takes them, and which it does.
  MME_WIDE void row(const double* h, long x, long y, int count, float* off, bool* inside) const {
    const double right = width - 1 - border, bottom = height - 1 - border;
    double px[kMostSamples], py[kMostSamples];
    for (int i = 0; i < count; ++i) {
      const double at = static_cast<double>(x + i * step), down = static_cast<double>(y);
      const double inverse = 1 / (h[6] * at + h[7] * down + h[8]);
      px[i] = (h[0] * at + h[1] * down + h[2]) * inverse;
      py[i] = (h[3] * at + h[4] * down + h[5]) * inverse;
      inside[i] = (px[i] >= border) & (px[i] <= right) & (py[i] >= border) & (py[i] <= bottom);
    }
    for (int i = 0; i < count; ++i) {
      off[i] = 0;
      if (!inside[i]) continue;
      const long left = static_cast<long>(px[i]), top = static_cast<long>(py[i]);
      const long next = left + (left + 1 < width), below = top + (top + 1 < height);
      const float fx = static_cast<float>(px[i] - left), fy = static_cast<float>(py[i] - top);
      const float *a = second + top * width, *b = second + below * width;
      const float upper = a[left] + fx * (a[next] - a[left]);
      const float lower = b[left] + fx * (b[next] - b[left]);
      off[i] = upper + fy * (lower - upper) - first[y * width + x + i * step];
    }
  }
};

// Scores of different homographies of a pair: camera_motion.py's explained.
inline void compare(const Comparison& c, const double* const* models, int many, float noise,
                    double* scores) {
  const long square = static_cast<long>(c.step) * c.samples;
  Spread<double> spread[kMostModels] = {};
  for (long top = 1; top < c.height; top += square) {
    for (long left = 1; left < c.width; left += square) {
      float off[kMostModels][kMostSamples * kMostSamples];
      bool inside[kMostModels][kMostSamples * kMostSamples];
      int count = 0;
      for (long y = top; y < top + square && y < c.height; y += c.step) {
        const long rest = (c.width - left + c.step - 1) / c.step;
        const int across = static_cast<int>(rest < c.samples ? rest : c.samples);
        for (int m = 0; m < many; ++m) {
          c.row(models[m], left, y, across, off[m] + count, inside[m] + count);
        }
        count += across;
      }
      int there = 0;
      double sum[kMostModels] = {}, squares[kMostModels] = {};
      for (int i = 0; i < count; ++i) {
        bool all = true;
        for (int m = 0; m < many; ++m) all &= inside[m][i];
        if (!all) continue;
        ++there;
        for (int m = 0; m < many; ++m) {
          sum[m] += off[m][i], squares[m] += static_cast<double>(off[m][i]) * off[m][i];
        }
      }
      if (there * 4 <= c.samples * c.samples) continue;
      double deviations[kMostModels], least = 0;
      for (int m = 0; m < many; ++m) {
        const double mean = sum[m] / there, variance = squares[m] / there - mean * mean;
        deviations[m] = __builtin_sqrt(variance > 0 ? variance : 0);
        least = m == 0 || deviations[m] < least ? deviations[m] : least;
      }
      for (int m = 0; m < many; ++m) {
        const double share = (least + noise) / (deviations[m] + noise);
        spread[m].add(share * share, static_cast<double>(left / square),
                      static_cast<double>(top / square));
      }
    }
  }
  for (int m = 0; m < many; ++m) scores[m] = spread[m].score();
}

}  // namespace MME_ISA
}  // namespace mme
