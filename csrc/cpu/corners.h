// Shi and Tomasi's corners: maxima of the smaller eigenvalue of the gradients' products, none with
// a stronger one within 3 px.
#pragma once

#include "fast_hessian.h"

namespace mme {
namespace MME_ISA {
namespace {

// One thread's memory for images of one size: a frame's strengths, which pixels a stronger corner
// has taken, the gradients' products summed along rows, and candidates.
struct CornerMemory {
  struct Candidate {
    uint64_t key;
  };
  static constexpr int kSide = 2;  // px around a frame
  void* all;
  Candidate* candidates;
  float* strengths;
  int* products;
  int16_t* rows;
  bool* taken;
  long pitch;

  CornerMemory(long width, long height) : pitch(width + kReadPast) {
    const long area = width * height, padded = (width + 2 * kSide) * (height + 2 * kSide);
    all = std::malloc(area * (sizeof(Candidate) + sizeof(float)) + 12 * pitch * sizeof(int) +
                      3 * pitch * sizeof(int16_t) + padded);
    candidates = static_cast<Candidate*>(all);
    strengths = reinterpret_cast<float*>(candidates + area);
    products = reinterpret_cast<int*>(strengths + area);
    rows = reinterpret_cast<int16_t*>(products + 12 * pitch);
    taken = reinterpret_cast<bool*>(rows + 3 * pitch);
  }
  ~CornerMemory() { std::free(all); }
  CornerMemory(const CornerMemory&) = delete;
  CornerMemory& operator=(const CornerMemory&) = delete;
};

// Products of the gradients (Sobel) of one row, xx, xy and yy, summed over three neighbours each;
// borders are reflected.
void products_of_row(const uint8_t* image, int y, int width, int height, int16_t* buffer,
                     long pitch, int* out, int* single) {
  const auto row = [&](int at) { return image + static_cast<long>(reflect(at, height)) * width; };
  const uint8_t *up = row(y - 1), *here = row(y), *low = row(y + 1);
  // A pixel to each side: smooth down the image, and its difference.
  int16_t *smooth = buffer + 1, *apart = buffer + pitch + 1;
  for (int x = 0; x < width; ++x) {
    smooth[x] = static_cast<int16_t>(up[x] + 2 * here[x] + low[x]);
    apart[x] = static_cast<int16_t>(low[x] - up[x]);
  }
  smooth[-1] = smooth[1], smooth[width] = smooth[width - 2];
  apart[-1] = apart[1], apart[width] = apart[width - 2];
  int *xx = single + 1, *xy = xx + pitch, *yy = xy + pitch;
  for (int x = 0; x < width; ++x) {
    const int dx = smooth[x + 1] - smooth[x - 1];
    const int dy = apart[x - 1] + 2 * apart[x] + apart[x + 1];
    xx[x] = dx * dx, xy[x] = dx * dy, yy[x] = dy * dy;
  }
  for (int k = 0; k < 3; ++k) {
    int *in = xx + k * pitch, *to = out + k * pitch;
    in[-1] = in[1], in[width] = in[width - 2];
    for (int x = 0; x < width; ++x) to[x] = (in[x - 1] + in[x]) + in[x + 1];
  }
}

// Strengths of an image; returns the largest.
float corner_strengths(const uint8_t* image, int width, int height, const CornerMemory& m) {
  // The products of three rows, and behind them what a row of them is summed from.
  const auto products = [&](int y) { return m.products + 3 * (y % 3) * m.pitch; };
  const auto make = [&](int y) {
    products_of_row(image, y, width, height, m.rows, m.pitch, products(y),
                    m.products + 9 * m.pitch);
  };
  make(0);
  float best = 0.f;
  for (int y = 0; y < height; ++y) {
    if (y + 1 < height) make(y + 1);
    const int *up = products(reflect(y - 1, height)), *here = products(y);
    const int* low = products(reflect(y + 1, height));
    float* out = m.strengths + static_cast<long>(y) * width;
    for (int x = 0; x < width; ++x) {
      const auto sum = [&](long at) { return static_cast<float>(up[at] + here[at] + low[at]); };
      out[x] = corner_strength(sum(x), sum(x + m.pitch), sum(x + 2 * m.pitch));
    }
    for (int x = 0; x < width; ++x) best = out[x] > best ? out[x] : best;
  }
  return best;
}

// Corners (x, y) of an image, the strongest first; returns how many. Of those that are maxima of
// their 3 x 3 above `quality` of the strongest, so many `candidates` are looked at.
long strongest_corners(const uint8_t* image, int width, int height, float quality, long candidates,
                       long most, const CornerMemory& m, float* out) {
  const Wide least = wide(corner_strengths(image, width, height, m) * quality);
  long count = 0;
  for (int y = 1; y < height - 1; ++y) {
    const float* row = m.strengths + static_cast<long>(y) * width;
    for (int x = 1; x < width - 1; x += kLanes) {
      const float* at = row + x;
      const Wide value = load(at);
      unsigned left = above(value, least);
      if (width - 1 - x < kLanes) left &= (1u << (width - 1 - x)) - 1;
      if (left == 0) continue;
      Wide around = vmax(load(at - 1), load(at + 1));
      for (int i = -1; i <= 1; ++i) {
        around = vmax(around, vmax(load(at - width + i), load(at + width + i)));
      }
      for (left &= ~above(around, value); left != 0; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        m.candidates[count++].key = key_of(at[lane], (at - m.strengths) + lane);
      }
    }
  }
  std::qsort(m.candidates, count, sizeof *m.candidates, larger_key_first<CornerMemory::Candidate>);
  constexpr int kSide = CornerMemory::kSide;
  const long padded = width + 2 * kSide;
  __builtin_memset(m.taken, 0, padded * (height + 2 * kSide));
  long kept = 0;
  for (long i = 0; i < count && i < candidates && kept < most; ++i) {
    const long place = 0xffffffffu - static_cast<uint32_t>(m.candidates[i].key);
    const long x = place % width, y = place / width;
    bool* corner = m.taken + y * padded + x;  // of the square around it
    if (corner[kSide * (padded + 1)]) continue;
    for (int j = 0; j <= 2 * kSide; ++j, corner += padded) {
      __builtin_memset(corner, 1, 2 * kSide + 1);
    }
    out[2 * kept] = static_cast<float>(x), out[2 * kept + 1] = static_cast<float>(y);
    ++kept;
  }
  return kept;
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
