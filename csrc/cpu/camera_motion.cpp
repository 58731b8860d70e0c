// Interest points and corners of frames, matches of two, and second frames without the camera's
// motion. Threads share the frames or pairs out, of the warp the rows.
#include "corners.h"
#include "kernels.h"
#include "matches.h"
#include "surf_descriptors.h"
#include "threads.h"

namespace mme {
namespace MME_ISA {
namespace {

bool points(const uint8_t* images, long count, long height, long width, int octaves,
            float threshold, long most, float* places, float* sides, float* strengths,
            int64_t* found, int threads) {
  bool enough_memory = true;
  parallel_for(count, 1, threads, [&](long first, long last) {
    const HessianMemory memory(width, height, octaves);
    if (memory.all == nullptr) {
      __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
      return;
    }
    for (long i = first; i < last; ++i) {
      found[i] = surf_points(images + i * height * width, static_cast<int>(width),
                             static_cast<int>(height), octaves, threshold, most, memory,
                             {places + 2 * i * most, sides + i * most, strengths + i * most});
    }
  });
  return enough_memory;
}

bool descriptors(const uint8_t* images, long count, long height, long width, const float* places,
                 const float* sides, const int64_t* found, long stride, long room,
                 const float* falloff, const float* disc, const float* compass, bool upright,
                 bool extended, float* directions, float* out, int threads) {
  const SurfTables tables(falloff, disc, compass);
  const long values = extended ? 128 : 64;
  bool enough_memory = true;
  parallel_for(count, 1, threads, [&](long first, long last) {
    const long wide = width + 2 * kPointMargin, tall = height + 2 * kPointMargin;
    void* memory = std::malloc(Integral::count(wide, tall) * sizeof(uint32_t));
    if (memory == nullptr) {
      __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
      return;
    }
    const Integral sums(static_cast<uint32_t*>(memory), wide);
    for (long i = first; i < last; ++i) {
      sums.fill(images + i * height * width, static_cast<int>(width), static_cast<int>(height),
                kPointMargin);
      for (long k = 0; k < found[i]; ++k) {
        const float* place = places + 2 * (i * stride + k);
        const int scale = scale_of(sides[i * stride + k]);
        const uint32_t* at = sums.data + (whole(place[1]) + kPointMargin) * sums.pitch +
                             whole(place[0]) + kPointMargin;
        Direction direction{1.f, 0.f};
        float window[kWindow][kColumns];
        if (upright) {
          boxes(at, sums.pitch, scale, window);
        } else {
          direction = orientation(at, sums.pitch, scale, tables);
          turned_boxes(at, sums.pitch, scale, direction, window);
        }
        const long row = i * room + k;
        directions[2 * row] = direction.cosine, directions[2 * row + 1] = direction.sine;
        if (extended) {
          descriptor<true>(window, tables, out + row * values);
        } else {
          descriptor<false>(window, tables, out + row * values);
        }
      }
    }
    std::free(memory);
  });
  return enough_memory;
}

bool corners(const uint8_t* images, long count, long height, long width, float quality,
             long candidates, long most, float* places, int64_t* found, int threads) {
  bool enough_memory = true;
  parallel_for(count, 1, threads, [&](long first, long last) {
    const CornerMemory memory(width, height);
    if (memory.all == nullptr) {
      __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
      return;
    }
    for (long i = first; i < last; ++i) {
      found[i] = strongest_corners(images + i * height * width, static_cast<int>(width),
                                   static_cast<int>(height), quality, candidates, most, memory,
                                   places + 2 * i * most);
    }
  });
  return enough_memory;
}

bool mutual(const float* points, const float* descriptors, const bool* valid, long room,
            long values, const int64_t* pairs, long count, float window, float* targets,
            bool* matched, int threads) {
  bool enough_memory = true;
  const auto frame = [&](long at) {
    return Described{points + 2 * at * room, descriptors + at * room * values, valid + at * room};
  };
  parallel_for(count, 1, threads, [&](long first, long last) {
    const MatchMemory memory(room);
    if (memory.all == nullptr) {
      __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
      return;
    }
    for (long p = first; p < last; ++p) {
      match(frame(pairs[2 * p]), frame(pairs[2 * p + 1]), room, values, window, memory,
            targets + 2 * p * room, matched + p * room);
    }
  });
  return enough_memory;
}

// A row of a second frame where a homography takes it, bilinear; the first frame's where that is
// outside the border. Positions are computed in double precision, as the reference does.
template <class T>
void warp_row(const T* first, const T* second, const double* h, int y, int width, int height,
              int border, int* at, float* across, float* down, float* out) {
  const double right = width - 1 - border, bottom = height - 1 - border;
  for (int x = 0; x < width; ++x) {
    const double w = h[6] * x + h[7] * y + h[8];
    const double px = (h[0] * x + h[1] * y + h[2]) / w, py = (h[3] * x + h[4] * y + h[5]) / w;
    const bool inside = (px >= border) & (px <= right) & (py >= border) & (py <= bottom);
    const double sure_x = inside ? px : 0., sure_y = inside ? py : 0.;  // >= 0: cutting is flooring
    const int left = static_cast<int>(sure_x), top = static_cast<int>(sure_y);
    across[x] = static_cast<float>(sure_x - left), down[x] = static_cast<float>(sure_y - top);
    at[x] = inside ? top * width + left : -1;
  }
  const int last = height * width - 1;
  for (int x = 0; x < width; ++x) {
    if (at[x] < 0) {
      out[x] = static_cast<float>(first[static_cast<long>(y) * width + x]);
      continue;
    }
    const auto read = [&](int offset) {
      return static_cast<float>(second[at[x] + offset < last ? at[x] + offset : last]);
    };
    const float above = read(0) + across[x] * (read(1) - read(0));
    const float below = read(width) + across[x] * (read(width + 1) - read(width));
    out[x] = above + down[x] * (below - above);
  }
}

template <class T>
void warp_frames(const T* first, const T* second, const double* homographies, long count,
                 long height, long width, int border, float* out, int threads) {
  const long area = height * width;
  parallel_for(count * height, 64, threads, [&](long begin, long end) {
    int* at = static_cast<int*>(std::malloc(3 * width * sizeof(int)));
    float* parts = reinterpret_cast<float*>(at + width);
    for (long row = begin; row < end; ++row) {
      const long i = row / height;
      warp_row(first + i * area, second + i * area, homographies + 9 * i,
               static_cast<int>(row % height), static_cast<int>(width), static_cast<int>(height),
               border, at, parts, parts + width, out + row * width);
    }
    std::free(at);
  });
}

void warp(const void* first, const void* second, bool is_u8, const double* homographies, long count,
          long height, long width, int border, float* out, int threads) {
  if (is_u8) {
    warp_frames(static_cast<const uint8_t*>(first), static_cast<const uint8_t*>(second),
                homographies, count, height, width, border, out, threads);
  } else {
    warp_frames(static_cast<const float*>(first), static_cast<const float*>(second), homographies,
                count, height, width, border, out, threads);
  }
}

}  // namespace

extern const CameraKernels kCameraMotion;
const CameraKernels kCameraMotion{points, descriptors, corners, mutual, warp};

}  // namespace MME_ISA
}  // namespace mme
