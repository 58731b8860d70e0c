// What TV-L1 does between its iterations, by a team: grey levels, resizing, gradients, warp,
// median.
#pragma once

#include "tvl1_team.h"

namespace mme::cuda {

template <class T>
__device__ void grey(const Team& team, const T* frame, int64_t channels, int64_t area, float* out) {
  team.for_each(area, [&](int64_t i) {
    out[i] = channels == 1
                 ? clamp(static_cast<float>(read(frame + i)), 0.f, 255.f)
                 : grey_level(read(frame + i), read(frame + area + i), read(frame + 2 * area + i));
  });
}

// One pixel of an image resized bilinearly, its border replicated.
struct Resize {
  int width, height;
  int64_t pitch;
  float ratio_x, ratio_y, scale;
  bool half;

  __device__ __forceinline__ float operator()(const float* in, int x, int y) const {
    const Between across = between(x, ratio_x, half, width, width > 1 ? width - 2 : 0);
    const Between down = between(y, ratio_y, half, height, height - 1);
    const float* a = in + down.low * pitch;
    const float* b = in + replicate(down.low + 1, height) * pitch;
    const int left = across.low, right = replicate(left + 1, width);
    const float first = (a[left] + down.part * (b[left] - a[left])) * scale;
    const float second = (a[right] + down.part * (b[right] - a[right])) * scale;
    return first + across.part * (second - first);
  }
};

// The second image with its gradient: (I, Ix, Iy, 0).
__device__ inline void fill_texture(const Team& team, const float* image, int width, int height,
                                    float4* texture) {
  team.for_pixels(width, height, [&](int x, int y) {
    const auto at = [&](int i, int j) {
      return image[static_cast<int64_t>(replicate(j, height)) * width + replicate(i, width)];
    };
    texture[static_cast<int64_t>(y) * width + x] = make_float4(
        at(x, y), 0.5f * (at(x + 1, y) - at(x - 1, y)), 0.5f * (at(x, y + 1) - at(x, y - 1)), 0.f);
  });
}

// Linearise the data term around the present flow.
template <bool kGamma>
__device__ void warp(const Team& team, const Level& level, const FlowOptions& o, const float* first,
                     const float4* texture, const Rows& flow, const Rows& data) {
  const int width = level.width, height = level.height;
  const float last_x = static_cast<float>(width - 1), last_y = static_cast<float>(height - 1);
  team.for_pixels(width, height, [&](int x, int y) {
    const float u = flow.at(y, 0)[x], v = flow.at(y, 1)[x];
    // Two pixels outside the frame all taps read its border. Counted from three pixels outside, so
    // that truncation is a floor.
    const float at_x = static_cast<float>(x + 3) + u, at_y = static_cast<float>(y + 3) + v;
    const float px = vmin(vmax(at_x, 1.f), last_x + 5.f), py = vmin(vmax(at_y, 1.f), last_y + 5.f);
    const int ix = static_cast<int>(px), iy = static_cast<int>(py);
    float wx[4], wy[4];
    cubic_weights(px - static_cast<float>(ix), o.cubic, 1.f, wx);
    cubic_weights(py - static_cast<float>(iy), o.cubic, 1.f, wy);
    float value = 0.f, gx = 0.f, gy = 0.f;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float4* row = texture + static_cast<int64_t>(replicate(iy - 4 + r, height)) * width;
      float row_value = 0.f, row_gx = 0.f, row_gy = 0.f;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float4 tap = row[replicate(ix - 4 + k, width)];
        row_value = madd(tap.x, wx[k], row_value);
        row_gx = madd(tap.y, wx[k], row_gx);
        row_gy = madd(tap.z, wx[k], row_gy);
      }
      value = madd(row_value, wy[r], value);
      gx = madd(row_gx, wy[r], gx), gy = madd(row_gy, wy[r], gy);
    }
    DataTerm<float> term =
        data_term<kGamma>(value, gx, gy, first[static_cast<int64_t>(y) * width + x], u, v,
                          o.lambda * o.theta, o.gamma, 1.f, 0.5f, kTinyGradient);
    if (o.inside) {  // no data term where the second frame does not reach
      term.limit *= inside_weight(at_x, at_y, 3.f, last_x + 3.f, last_y + 3.f, 0.f, 1.f, 1e30f);
    }
    data.at(y, 0)[x] = term.constant, data.at(y, 1)[x] = term.nx, data.at(y, 2)[x] = term.ny;
    data.at(y, 3)[x] = term.limit;
    if (kGamma) data.at(y, 4)[x] = term.nz;
  });
}

// Median of u and v; the illumination is copied.
template <bool kGamma>
__device__ void median(const Team& team, const Level& level, int size, const Rows& flow,
                       const Rows& out) {
  const int width = level.width, height = level.height;
  team.for_pixels(width, height, [&](int x, int y) {
#pragma unroll 1
    for (int c = 0; c < 2; ++c) {
      const auto at = [&](int dx, int dy) {
        return flow.at(replicate(y + dy, height), c)[replicate(x + dx, width)];
      };
      out.at(y, c)[x] = size == 5 ? median25<float>([&](int k) { return at(k % 5 - 2, k / 5 - 2); })
                                  : median9(at(-1, -1), at(0, -1), at(1, -1), at(-1, 0), at(0, 0),
                                            at(1, 0), at(-1, 1), at(0, 1), at(1, 1));
    }
    if (kGamma) out.at(y, 2)[x] = flow.at(y, 2)[x];
  });
}

}  // namespace mme::cuda
