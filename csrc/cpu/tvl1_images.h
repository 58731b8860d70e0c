// What TV-L1 does between its iterations: grey levels, pyramid, gradients, warp, median.
#pragma once

#include "tvl1_field.h"

namespace mme {
namespace MME_ISA {
namespace {

constexpr int kSlack = 32;  // floats behind a plane, which vectors may read

// A frame [C, H, W], C 3 or 1, as grey levels.
template <class T>
void grey(const T* frame, int channels, long area, float* out) {
  if (channels == 1) {
    for (long i = 0; i < area; ++i) out[i] = clamp(static_cast<float>(frame[i]), 0.f, 255.f);
    return;
  }
  const T *r = frame, *g = frame + area, *b = frame + 2 * area;
  for (long i = 0; i < area; ++i) out[i] = grey_level(r[i], g[i], b[i]);
}

// Bilinear, with the border replicated. `buffer` holds 2 * out_width + width floats.
void resize(const float* in, int width, int height, float* out, int out_width, int out_height,
            long out_stride, float ratio_x, float ratio_y, bool half, float scale, float* buffer) {
  int* left = reinterpret_cast<int*>(buffer);
  float *part = buffer + out_width, *row = part + out_width;
  for (int x = 0; x < out_width; ++x) {
    const Between at = between(x, ratio_x, half, width, width > 1 ? width - 2 : 0);
    left[x] = at.low, part[x] = at.part;
  }
  for (int y = 0; y < out_height; ++y) {
    const Between at = between(y, ratio_y, half, height, height - 1);
    const int top = at.low, below = top + 1 < height ? top + 1 : top;
    const float t = at.part;
    const float *a = in + static_cast<long>(top) * width,
                *b = in + static_cast<long>(below) * width;
    for (int x = 0; x < width; ++x) row[x] = (a[x] + t * (b[x] - a[x])) * scale;
    row[width] = row[width - 1];
    float* to = out + y * out_stride;
    int x = 0;
#if defined(__AVX512F__)
    // As long as the pixels of a vector lie within two.
    for (; x + kLanes <= out_width && left[x + kLanes - 1] - left[x] < 2 * kLanes - 1;
         x += kLanes) {
      const float* pixel = row + left[x];
      const Wide a = load(pixel), b = load(pixel + kLanes);
      const __m512i at = _mm512_sub_epi32(_mm512_loadu_si512(left + x), _mm512_set1_epi32(left[x]));
      const Wide one = _mm512_permutex2var_ps(a, at, b);
      const Wide two = _mm512_permutex2var_ps(a, _mm512_add_epi32(at, _mm512_set1_epi32(1)), b);
      store(to + x, one + load(part + x) * (two - one));
    }
#endif
    for (; x < out_width; ++x) {
      const float* pixel = row + left[x];
      to[x] = pixel[0] + part[x] * (pixel[1] - pixel[0]);
    }
  }
}

// The second image of a level with its gradient (I, Ix, Iy), continued by what lies at the border.
// Four floats a pixel, so that the taps of one pixel are one piece of memory; with AVX-512 three
// planes, of which vectors are permuted.
struct Texture {
  static constexpr int kBefore = 3, kAfter = 4;
  static constexpr bool kPlanes = kLanes == 16;
  static constexpr int kPixel = kPlanes ? 1 : 4;  // floats from one pixel to the next
  static constexpr int kSide = 16;                // floats before a plane, which vectors may read
  float* data;
  int width, height;

  static long floats(int width, int height) {
    return 4L * (width + kBefore + kAfter) * (height + kBefore + kAfter) + kSide + 2 * kSlack;
  }
  int stride() const { return width + kBefore + kAfter; }
  // From a pixel's level to its gradient.
  long plane() const {
    return kPlanes ? static_cast<long>(stride()) * (height + kBefore + kAfter) : 1;
  }

  void fill(const float* image, int team) const {
    if (kPlanes) {  // what vectors read before and below has weight zero, but 0 * NaN is NaN
      __builtin_memset(data, 0, sizeof(float) * kSide);
      __builtin_memset(data + kSide + 3 * plane(), 0, sizeof(float) * (stride() + kSlack));
    }
    parallel_for(height + kBefore + kAfter, 32, team, [&](long first, long last) {
      for (long y = first; y < last; ++y) fill_row(image, static_cast<int>(y));
    });
  }
  void fill_row(const float* image, int padded_y) const {
    const int y = replicate(padded_y - kBefore, height);
    const float* row = image + static_cast<long>(y) * width;
    const float* up = image + static_cast<long>(replicate(y - 1, height)) * width;
    const float* down = image + static_cast<long>(replicate(y + 1, height)) * width;
    float* out = data + kSide + static_cast<long>(kPixel) * padded_y * stride();
    const long next = plane();
    const auto put = [&](long at, int x, int left, int right) {
      float* to = out + kPixel * at;
      to[0] = row[x], to[next] = 0.5f * (row[right] - row[left]);
      to[2 * next] = 0.5f * (down[x] - up[x]);
      if (!kPlanes) to[3] = 0.f;
    };
    const auto at_border = [&](int at) {
      const int x = replicate(at, width);
      put(at + kBefore, x, replicate(x - 1, width), replicate(x + 1, width));
    };
    for (int at = -kBefore; at < 1; ++at) at_border(at);
    long x = 1;
    for (; kPlanes && x + kLanes < width; x += kLanes) {
      float* to = out + x + kBefore;
      store(to, load(row + x));
      store(to + next, wide(0.5f) * (load(row + x + 1) - load(row + x - 1)));
      store(to + 2 * next, wide(0.5f) * (load(down + x) - load(up + x)));
    }
    for (; x < width - 1; ++x) {
      put(x + kBefore, static_cast<int>(x), static_cast<int>(x) - 1, static_cast<int>(x) + 1);
    }
    for (int at = width - 1; at < width + kAfter; ++at) at_border(at);
  }
};

#if defined(__AVX512F__)
// Lanes whose whole number is `low` or one more: lane 0's number and a neighbour of it.
struct TwoNeighbours {
  int low;
  __mmask16 lower, upper;

  TwoNeighbours() {}
  explicit MME_WIDE TwoNeighbours(__m512i values) : low(_mm512_cvtsi512_si32(values)) {
    low -= _mm512_cmpeq_epi32_mask(values, _mm512_set1_epi32(low - 1)) != 0;
    lower = _mm512_cmpeq_epi32_mask(values, _mm512_set1_epi32(low));
    upper = _mm512_cmpeq_epi32_mask(values, _mm512_set1_epi32(low + 1));
  }
  MME_WIDE bool all(unsigned lanes) const { return (lanes & ~(lower | upper)) == 0; }
  // Weights of five taps from `low` on, of which each lane has four.
  MME_WIDE void spread(const Wide weights[4], Wide five[5]) const {
    five[0] = _mm512_maskz_mov_ps(lower, weights[0]);
    for (int k = 1; k < 4; ++k) five[k] = _mm512_mask_mov_ps(weights[k], upper, weights[k - 1]);
    five[4] = _mm512_maskz_mov_ps(upper, weights[3]);
  }
};
#endif

// Where some lanes read a texture: the first tap's place; with AVX-512, whether neighbours read
// neighbours, but for one pixel, which is found a vector ahead, since branches depend on it.
struct Taps {
  static constexpr bool kAhead = kLanes == 16;
  WideInt x, y;
  Wide at_x, at_y, part_x, part_y;
#if defined(__AVX512F__)
  TwoNeighbours columns, rows;
  unsigned counted;
  bool near;
#endif

  // Of positions in the texture, `count` of which matter; two pixels outside the frame all taps
  // read its border.
  MME_WIDE void find(Wide to_x, Wide to_y, Wide one, Wide right, Wide bottom, int count) {
    at_x = to_x, at_y = to_y;
    const Wide px = vmin(vmax(at_x, one), right), py = vmin(vmax(at_y, one), bottom);
    const WideInt ix = truncated(px), iy = truncated(py);
    part_x = px - to_float(ix), part_y = py - to_float(iy);
    x = ix - 1, y = iy - 1;
#if defined(__AVX512F__)
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    columns = TwoNeighbours(_mm512_sub_epi32((__m512i)x, lanes)), rows = TwoNeighbours((__m512i)y);
    counted = count >= kLanes ? 0xffff : (1u << (count > 0 ? count : 0)) - 1;
    near = columns.all(counted) && rows.all(counted);
#else
    (void)count;
#endif
  }
};

#if defined(__AVX512F__)
// Samples of near lanes: their taps are in four or five columns, one pixel on from lane to lane,
// and rows.
template <bool kFifth>
MME_WIDE void sample_near(const Texture& image, const Taps& at, const Wide wx[4], const Wide wy[4],
                          Wide samples[3]) {
  const long stride = image.stride(), plane = image.plane();
  const float* from = image.data + Texture::kSide + at.rows.low * stride + at.columns.low;
  Wide across[5], down[5];
  at.columns.spread(wx, across), at.rows.spread(wy, down);
  for (int k = 0; k < 3; ++k) samples[k] = wide(0.f);
  for (int r = 0; r < 5; ++r, from += stride) {
    if (r == 4 && at.rows.upper == 0) break;
    for (int k = 0; k < 3; ++k) {
      const __m512i a = (__m512i)load(from + k * plane);
      const __m512i b = (__m512i)load(from + k * plane + kLanes);
      Wide line = across[0] * (Wide)a;
      line = madd(across[1], (Wide)_mm512_alignr_epi32(b, a, 1), line);
      line = madd(across[2], (Wide)_mm512_alignr_epi32(b, a, 2), line);
      line = madd(across[3], (Wide)_mm512_alignr_epi32(b, a, 3), line);
      if (kFifth) line = madd(across[4], (Wide)_mm512_alignr_epi32(b, a, 4), line);
      samples[k] = madd(down[r], line, samples[k]);
    }
  }
}
#endif

// Samples of (I, Ix, Iy) at some lanes, with weights by tap.
MME_WIDE void sample(const Texture& image, const Taps& at, const Wide wx[4], const Wide wy[4],
                     Wide samples[3]) {
  const long stride = image.stride();
#if defined(__AVX512F__)
  if (at.near) {
    if (at.columns.upper == 0) {
      sample_near<false>(image, at, wx, wy, samples);
    } else {
      sample_near<true>(image, at, wx, wy, samples);
    }
    return;
  }
  // Otherwise a pass takes every lane that reads from the same 32 pixels of five rows as the first
  // lane that is left, and permutes them: 16 at worst.
  constexpr int kBack = 6;  // pixels of them before the first lane's
  const __m512i px = (__m512i)at.x, py = (__m512i)at.y;
  alignas(64) int xs[kLanes], ys[kLanes];
  _mm512_store_si512(xs, px), _mm512_store_si512(ys, py);
  for (int k = 0; k < 3; ++k) samples[k] = wide(0.f);
  for (unsigned left = at.counted; left != 0;) {
    const int lane = __builtin_ctz(left), base = xs[lane] - kBack;
    const __m512i tap = _mm512_sub_epi32(px, _mm512_set1_epi32(base));
    const __mmask16 near =
        _mm512_mask_cmple_epu32_mask(static_cast<__mmask16>(left), tap, _mm512_set1_epi32(32 - 4));
    const __mmask16 above = _mm512_mask_cmpeq_epi32_mask(near, py, _mm512_set1_epi32(ys[lane] - 1));
    const int top = ys[lane] - (above != 0);
    const __mmask16 upper = _mm512_mask_cmpeq_epi32_mask(near, py, _mm512_set1_epi32(top));
    const __mmask16 lower = _mm512_mask_cmpeq_epi32_mask(near, py, _mm512_set1_epi32(top + 1));
    const __mmask16 taken = upper | lower;
    const __m512i one = _mm512_set1_epi32(1), tap1 = _mm512_add_epi32(tap, one);
    const __m512i tap2 = _mm512_add_epi32(tap1, one), tap3 = _mm512_add_epi32(tap2, one);
    const float* from = image.data + Texture::kSide + top * stride + base;
    Wide found[3] = {wide(0.f), wide(0.f), wide(0.f)};
    const auto row = [&](Wide weight) __attribute__((always_inline)) {
      for (int k = 0; k < 3; ++k) {
        const Wide a = load(from + k * image.plane()), b = load(from + k * image.plane() + kLanes);
        Wide line = wx[0] * _mm512_permutex2var_ps(a, tap, b);
        line = madd(wx[1], _mm512_permutex2var_ps(a, tap1, b), line);
        line = madd(wx[2], _mm512_permutex2var_ps(a, tap2, b), line);
        line = madd(wx[3], _mm512_permutex2var_ps(a, tap3, b), line);
        found[k] = madd(weight, line, found[k]);
      }
      from += stride;
    };
    row(_mm512_maskz_mov_ps(upper, wy[0]));
    for (int r = 1; r < 4; ++r) row(_mm512_mask_mov_ps(wy[r], lower, wy[r - 1]));
    if (lower != 0) row(_mm512_maskz_mov_ps(lower, wy[3]));
    for (int k = 0; k < 3; ++k) samples[k] = _mm512_mask_mov_ps(samples[k], taken, found[k]);
    left &= ~static_cast<unsigned>(taken);
  }
#else
  alignas(64) float across[4][kLanes], down[4][kLanes], out[3][kLanes];
  alignas(64) int offset[kLanes];
  const WideInt place = at.y * image.stride() + at.x;
  __builtin_memcpy(offset, &place, sizeof offset);
  for (int k = 0; k < 4; ++k) store(across[k], wx[k]), store(down[k], wy[k]);
  for (int i = 0; i < kLanes; ++i) {
    const float* from = image.data + Texture::kSide + 4L * offset[i];
    Four all = {0, 0, 0, 0};
    for (int r = 0; r < 4; ++r, from += 4 * stride) {
      Four row = {0, 0, 0, 0};
      for (int k = 0; k < 4; ++k) row = madd4(load4(from + 4 * k), across[k][i], row);
      all = madd4(row, down[r][i], all);
    }
    for (int k = 0; k < 3; ++k) out[k][i] = all[k];
  }
  for (int k = 0; k < 3; ++k) samples[k] = load(out[k]);
#endif
}

// Linearise the data term around the present flow (kU, kV): kC, kNx, kNy, kLimit.
template <bool kGamma>
void warp_row(const Field<kGamma>& f, int y, const float* first, const Texture& second,
              const FlowOptions& options) {
  const float pull = options.lambda * options.theta;
  const float gamma = options.gamma;
  const float *u = f.row(y, kU), *v = f.row(y, kV),
              *level0 = first + static_cast<long>(y) * f.width;
  float* block = f.blocks(y);
  float across[kLanes];
  for (int i = 0; i < kLanes; ++i) across[i] = static_cast<float>(i + Texture::kBefore);
  const Wide lanes = load(across), half = wide(0.5f), one = wide(1.f);
  const Wide sharpness = wide(options.cubic);
  const Wide right = wide(static_cast<float>(f.width + Texture::kAfter));
  const Wide bottom = wide(static_cast<float>(f.height + Texture::kAfter));
  const Wide last_x = wide(static_cast<float>(f.width - 1 + Texture::kBefore));
  const Wide last_y = wide(static_cast<float>(f.height - 1 + Texture::kBefore));
  const auto taps = [&](int x) __attribute__((always_inline)) {
    Taps at;
    at.find(lanes + wide(static_cast<float>(x)) + load(u + x),
            wide(static_cast<float>(y + Texture::kBefore)) + load(v + x), one, right, bottom,
            f.width - x);
    return at;
  };
  Taps next = taps(0);
  for (int x = 0; x < f.width; x += kLanes, block += Field<kGamma>::kBlock) {
    const Taps at = Taps::kAhead ? next : taps(x);
    next = taps(x + kLanes);
    const Wide du = load(u + x), dv = load(v + x);
    Wide wx[4], wy[4];
    cubic_weights(at.part_x, sharpness, one, wx);
    cubic_weights(at.part_y, sharpness, one, wy);
    Wide found[3];
    sample(second, at, wx, wy, found);
    const Wide level = found[0], gx = found[1], gy = found[2];

    auto term = data_term<kGamma>(level, gx, gy, load(level0 + x), du, dv, wide(pull), wide(gamma),
                                  one, half, wide(kTinyGradient));
    store(block + kC * kLanes, term.constant);
    store(block + kNx * kLanes, term.nx);
    store(block + kNy * kLanes, term.ny);
    if (options.inside) {  // no data term where the second frame does not reach
      term.limit = term.limit * inside_weight(at.at_x, at.at_y, wide(Texture::kBefore), last_x,
                                              last_y, wide(0.f), one, wide(1e30f));
    }
    store(block + kLimit * kLanes, term.limit);
    if (kGamma) store(block + kNz * kLanes, term.nz);
  }
}

// Median of each component of the flow. `copy` holds median_floats.
long median_floats(int width, int height) {
  return 2L * (width + 4 + 2 * kMargin) * height + 2 * kMargin;
}
template <bool kGamma>
void median_flow(const Field<kGamma>& f, int size, float* copy, int team) {
  const long stride = f.width + 4 + kMargin;
  parallel_for(2L * f.height, 64, team, [&](long first, long last) {
    for (long i = first; i < last; ++i) {
      const float* from = f.row(static_cast<int>(i / 2), i % 2 ? kV : kU);
      float* to = copy + i * stride + 2;
      __builtin_memcpy(to, from, sizeof(float) * f.width);
      to[-2] = to[-1] = to[0], to[f.width] = to[f.width + 1] = to[f.width - 1];
    }
  });
  const auto row = [&](long y, int which) {
    return copy + (2L * replicate(static_cast<int>(y), f.height) + which) * stride + 2;
  };
  parallel_for(f.height, 32, team, [&](long first, long last) {
    for (int which = 0; which < 2; ++which) {
      const int plane = which ? kV : kU;
      if (size == 5) {
        for (long y = first; y < last; ++y) {
          const float* rows[5];
          for (int k = 0; k < 5; ++k) rows[k] = row(y + k - 2, which);
          float* out = f.row(static_cast<int>(y), plane);
          for (long x = 0; x < f.width; x += kLanes) {
            store(out + x,
                  median25<Wide>([&](int k) { return load(rows[k / 5] + x + k % 5 - 2); }));
          }
        }
      } else {  // down the image, so that three values of a row are sorted once
        const auto sorted = [&](long x, long y) {
          const float* at = row(y, which) + x;
          return sort3(load(at - 1), load(at), load(at + 1));
        };
        for (long x = 0; x < f.width; x += kLanes) {
          Sorted3<Wide> above = sorted(x, first - 1), here = sorted(x, first);
          for (long y = first; y < last; ++y) {
            const Sorted3<Wide> below = sorted(x, y + 1);
            store(f.row(static_cast<int>(y), plane) + x, median_of_sorted(above, here, below));
            above = here, here = below;
          }
        }
      }
      for (long y = first; y < last; ++y) {
        float* out = f.row(static_cast<int>(y), plane);
        out[f.width] = out[f.width - 1];
      }
    }
  });
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
