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
    for (int x = 0; x < out_width; ++x) {
      const float* pixel = row + left[x];
      to[x] = pixel[0] + part[x] * (pixel[1] - pixel[0]);
    }
  }
}

// The second image of a level with its gradient, four floats a pixel (I, Ix, Iy, 0), continued by
// what lies at the border: four taps then need one piece of memory.
struct Texture {
  static constexpr int kBefore = 3, kAfter = 4;
  float* data;
  int width, height;

  static long floats(int width, int height) {
    return 4L * (width + kBefore + kAfter) * (height + kBefore + kAfter) + kSlack;
  }
  int stride() const { return width + kBefore + kAfter; }

  void fill(const float* image, int team) const {
    parallel_for(height + kBefore + kAfter, 32, team, [&](long first, long last) {
      for (long y = first; y < last; ++y) fill_row(image, static_cast<int>(y));
    });
  }
  void fill_row(const float* image, int padded_y) const {
    const int y = replicate(padded_y - kBefore, height);
    const float* row = image + static_cast<long>(y) * width;
    const float* up = image + static_cast<long>(replicate(y - 1, height)) * width;
    const float* down = image + static_cast<long>(replicate(y + 1, height)) * width;
    float* out = data + 4L * padded_y * stride();
    const auto put = [&](float* to, int x, int left, int right) {
      to[0] = row[x], to[1] = 0.5f * (row[right] - row[left]), to[2] = 0.5f * (down[x] - up[x]);
      to[3] = 0.f;
    };
    const auto at_border = [&](int x) {
      put(out + 4 * (x + kBefore), replicate(x, width), replicate(replicate(x, width) - 1, width),
          replicate(replicate(x, width) + 1, width));
    };
    for (int x = -kBefore; x < 1; ++x) at_border(x);
    for (int x = 1; x < width - 1; ++x) put(out + 4 * (x + kBefore), x, x - 1, x + 1);
    for (int x = width - 1; x < width + kAfter; ++x) at_border(x);
  }
};

// Samples of (I, Ix, Iy) at kLanes positions: `offset` of the first tap in pixels, weights by tap.
MME_WIDE void sample(const Texture& image, const int* offset, const Wide wx[4], const Wide wy[4],
                     Wide* level, Wide* gx, Wide* gy) {
  const long stride = 4L * image.stride();
  alignas(64) float down[4][kLanes];
  for (int r = 0; r < 4; ++r) store(down[r], wy[r]);
#if defined(__AVX512F__)
  // One pixel's four taps of a row are one vector. Pixel 4 q + g lands in quarter q of result g, as
  // do its weights when four vectors of them are transposed.
  const auto transpose = [](const __m512 in[4], __m512 out[4]) {
    const __m512 a = _mm512_unpacklo_ps(in[0], in[1]), b = _mm512_unpacklo_ps(in[2], in[3]);
    const __m512 c = _mm512_unpackhi_ps(in[0], in[1]), d = _mm512_unpackhi_ps(in[2], in[3]);
    out[0] = _mm512_shuffle_ps(a, b, 0x44), out[1] = _mm512_shuffle_ps(a, b, 0xee);
    out[2] = _mm512_shuffle_ps(c, d, 0x44), out[3] = _mm512_shuffle_ps(c, d, 0xee);
  };
  __m512 across[4], r[4], planes[4];
  transpose(wx, across);
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const auto pixel = [&](int q, int g) {
    const int i = 4 * q + g;
    const float* from = image.data + 4L * offset[i];
    __m512 all = _mm512_mul_ps(_mm512_loadu_ps(from), _mm512_set1_ps(down[0][i]));
    all = _mm512_fmadd_ps(_mm512_loadu_ps(from + stride), _mm512_set1_ps(down[1][i]), all);
    all = _mm512_fmadd_ps(_mm512_loadu_ps(from + 2 * stride), _mm512_set1_ps(down[2][i]), all);
    all = _mm512_fmadd_ps(_mm512_loadu_ps(from + 3 * stride), _mm512_set1_ps(down[3][i]), all);
    const __m512i weight = _mm512_add_epi32(spread, _mm512_set1_epi32(4 * q));
    return _mm512_mul_ps(all, _mm512_permutexvar_ps(weight, across[g]));
  };
  const auto halves = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  for (int g = 0; g < 4; ++g) {
    const __m512 a = halves(pixel(0, g), pixel(1, g)), b = halves(pixel(2, g), pixel(3, g));
    r[g] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  transpose(r, planes);
  *level = planes[0], *gx = planes[1], *gy = planes[2];
#else
  float across[4][kLanes], out[3][kLanes];
  for (int k = 0; k < 4; ++k) store(across[k], wx[k]);
  for (int i = 0; i < kLanes; ++i) {
    const float* from = image.data + 4L * offset[i];
    Four all = {0, 0, 0, 0};
    for (int r = 0; r < 4; ++r, from += stride) {
      Four row = {0, 0, 0, 0};
      for (int k = 0; k < 4; ++k) row = madd4(load4(from + 4 * k), across[k][i], row);
      all = madd4(row, down[r][i], all);
    }
    for (int k = 0; k < 3; ++k) out[k][i] = all[k];
  }
  *level = load(out[0]), *gx = load(out[1]), *gy = load(out[2]);
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
  const int stride = second.stride();
  for (int x = 0; x < f.width; x += kLanes, block += Field<kGamma>::kBlock) {
    const Wide du = load(u + x), dv = load(v + x);
    // Positions in the texture: two pixels outside the frame all taps read its border.
    const Wide at_x = lanes + wide(static_cast<float>(x)) + du;
    const Wide at_y = wide(static_cast<float>(y + Texture::kBefore)) + dv;
    const Wide px = vmin(vmax(at_x, one), right), py = vmin(vmax(at_y, one), bottom);
    const WideInt ix = truncated(px), iy = truncated(py);
    alignas(64) int offset[kLanes];
    const WideInt place = (iy - 1) * stride + (ix - 1);
    __builtin_memcpy(offset, &place, sizeof offset);
    Wide wx[4], wy[4];
    cubic_weights(px - to_float(ix), sharpness, one, wx);
    cubic_weights(py - to_float(iy), sharpness, one, wy);
    Wide level, gx, gy;
    sample(second, offset, wx, wy, &level, &gx, &gy);

    auto term = data_term<kGamma>(level, gx, gy, load(level0 + x), du, dv, wide(pull), wide(gamma),
                                  one, half, wide(kTinyGradient));
    store(block + kC * kLanes, term.constant);
    store(block + kNx * kLanes, term.nx);
    store(block + kNy * kLanes, term.ny);
    if (options.inside) {  // no data term where the second frame does not reach
      term.limit = term.limit * inside_weight(at_x, at_y, wide(Texture::kBefore), last_x, last_y,
                                              wide(0.f), one, wide(1e30f));
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
  parallel_for(2L * f.height, 64, team, [&](long first, long last) {
    for (long i = first; i < last; ++i) {
      const int y = static_cast<int>(i / 2);
      const float* row[5];
      for (int k = 0; k < 5; ++k) {
        row[k] = copy + (2L * replicate(y + k - 2, f.height) + i % 2) * stride + 2;
      }
      float* out = f.row(y, i % 2 ? kV : kU);
      for (int x = 0; x < f.width; x += kLanes) {
        if (size == 5) {
          store(out + x, median25<Wide>([&](int k) { return load(row[k / 5] + x + k % 5 - 2); }));
        } else {
          const auto at = [&](int k) { return load(row[1 + k / 3] + x + k % 3 - 1); };
          store(out + x, median9(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)));
        }
      }
      out[f.width] = out[f.width - 1];
    }
  });
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
