// Tracks and the median filter on CUDA: csrc/common/trajectories.h, one thread a track.
//
// A warp holds 32 neighbouring tracks. On the 8 px grid their windows lie in one row of 32-byte
// sectors, so that each sector is fetched once, and the 18 loads of a step are independent. A
// thread's own outputs lie L+1 points apart in memory, so a warp collects them in shared memory and
// writes its whole block in one run.
#include "../common/trajectories.h"
#include "launch.h"

namespace mme::cuda {
namespace {

// A pair that does not exist reads as not finite: from memory that does, without a branch.
template <class T>
struct Plane {
  const T* pixels;
  int width;
  bool exists;

  MME_FN float operator()(int x, int y) const {
    const float value = as_float(read(pixels + static_cast<int64_t>(y) * width + x));
    return exists ? value : NAN;
  }
};

template <class T>
struct Clip {
  const T* flow;
  const int32_t* steps;  // the track's row, if it exists
  int64_t pairs, plane;
  int width;
  bool exists;

  MME_FN Plane<T> operator()(int step, int component) const {
    const int64_t pair = exists ? read(steps + step) : -1;
    const bool known = pair >= 0 && pair < pairs;
    return {flow + (2 * (known ? pair : 0) + component) * plane, width, known};
  }
};

// Into the warp's piece of shared memory: a track's points and displacements, each in a row.
struct Stage {
  float2 *points, *displacements;

  MME_FN void operator()(int step, float dx, float dy, float x, float y) const {
    displacements[step] = make_float2(dx, dy);
    points[step + 1] = make_float2(x, y);
  }
};

struct TrackArrays {
  const void* flow;
  const float2* seeds;
  const int32_t *starts, *steps;
  float2 *points, *displacements;
  bool* visible;
};

// Eight blocks a multiprocessor leave a thread 64 registers, three 160: enough for all the loads of
// a step to be in flight, which are 18, and 72 for the four windows of bilinear sampling.
template <class T, bool kMedian, bool kBilinear>
__global__ void __launch_bounds__(128, kBilinear ? (kMedian ? 3 : 8) : 8)
    tracks_kernel(TrackArrays a, TrackSizes s, float bound) {
  MME_DYNAMIC_SHARED(float2, stage);
  const int lane = threadIdx.x % kWarp;
  const int64_t track_id = global_thread(), first = track_id - lane;
  const int64_t total = s.batch * s.tracks;
  const int points = s.length + 1;
  float2* warp_points = stage + (threadIdx.x - lane) * (2 * s.length + 1);
  float2* warp_displacements = warp_points + kWarp * points;

  if (track_id < total) {
    const int64_t b = track_id / s.tracks;
    const int64_t seed = s.seed_batches > 1 ? track_id : track_id - b * s.tracks;
    const int64_t plane = static_cast<int64_t>(s.height) * s.width;
    const int64_t start = read(a.starts + seed);
    const bool exists = start >= 0 && start < s.starts;
    const Clip<T> clip{static_cast<const T*>(a.flow) + b * s.pairs * 2 * plane,
                       a.steps + start * s.length,
                       s.pairs,
                       plane,
                       s.width,
                       exists};
    const float2 at = read(a.seeds + seed);
    const Stage row{warp_points + lane * points, warp_displacements + lane * s.length};
    row.points[0] = at;
    a.visible[track_id] =
        track<kMedian, kBilinear>(at.x, at.y, s.length, s.width, s.height, bound, clip, row) &&
        exists;
  }
  __syncwarp();
  if (first >= total) return;
  const int held = total - first < kWarp ? static_cast<int>(total - first) : kWarp;
  for (int i = lane; i < held * points; i += kWarp) a.points[first * points + i] = warp_points[i];
  for (int i = lane; i < held * s.length; i += kWarp) {
    a.displacements[first * s.length + i] = warp_displacements[i];
  }
}

template <class T>
void launch_tracks(const TrackArrays& a, const TrackSizes& s, const TrackOptions& o, Queue queue) {
  const size_t each = sizeof(float2) * (2 * s.length + 1);
  int threads = 128;
  while (threads > kWarp && threads * each > 48 * 1024) threads /= 2;
  const auto kernel =
      o.median ? (o.bilinear ? tracks_kernel<T, true, true> : tracks_kernel<T, true, false>)
               : (o.bilinear ? tracks_kernel<T, false, true> : tracks_kernel<T, false, false>);
  launch("tracks", queue, kernel, divide_up(s.batch * s.tracks, threads), threads, threads * each,
         a, s, o.bound);
}

// One thread a column of kStrip rows: each row's three pixels are sorted once and serve three
// outputs, so that the network takes 18 minima and maxima a pixel and memory sets the pace.
constexpr int kStrip = 16;

__global__ void __launch_bounds__(256)
    median_kernel(const float* planes, int64_t columns, int strips, int height, int width,
                  float* out) {
  const int64_t id = global_thread();
  if (id >= columns) return;
  const int64_t strip = id / width;
  const int x = static_cast<int>(id - strip * width);
  const int64_t plane = strip / strips;
  const int top = static_cast<int>(strip - plane * strips) * kStrip;
  const int bottom = top + kStrip < height ? top + kStrip : height;
  const int64_t size = static_cast<int64_t>(height) * width;
  const float* source = planes + plane * size;
  float* target = out + plane * size + static_cast<int64_t>(top) * width + x;
  const int left = replicate(x - 1, width), right = replicate(x + 1, width);
  const auto row = [=](int y) {
    const float* p = source + static_cast<int64_t>(replicate(y, height)) * width;
    return sort3(read(p + left), read(p + x), read(p + right));
  };
  Sorted3<float> above = row(top - 1), here = row(top);
#pragma unroll 4
  for (int y = top; y < bottom; ++y) {
    const Sorted3<float> below = row(y + 1);
    *target = median_of_sorted(above, here, below);
    target += width;
    above = here, here = below;
  }
}

}  // namespace

void tracks(const void* flow, const float* seeds, const int32_t* starts, const int32_t* steps,
            const TrackSizes& sizes, const TrackOptions& options, float* points,
            float* displacements, bool* visible, Queue queue) {
  if (sizes.length < 0 || sizes.length > kLongestTrack) {
    throw std::invalid_argument("tracks have " + std::to_string(sizes.length) +
                                " steps; must be 0 to " + std::to_string(kLongestTrack));
  }
  TrackSizes read = sizes;
  if (sizes.pairs == 0) {  // every track dies at once; what it reads meanwhile must exist
    flow = seeds, read.height = read.width = 1;
  }
  const TrackArrays arrays{
      flow,   reinterpret_cast<const float2*>(seeds), starts,
      steps,  reinterpret_cast<float2*>(points),      reinterpret_cast<float2*>(displacements),
      visible};
  if (options.half) {
    launch_tracks<__half>(arrays, read, options, queue);
  } else {
    launch_tracks<float>(arrays, read, options, queue);
  }
}

void median_filter(const float* planes, int64_t count, int height, int width, float* out,
                   Queue queue) {
  const int strips = static_cast<int>(divide_up(height, kStrip));
  const int64_t columns = count * strips * width;
  launch("median_filter", queue, median_kernel, divide_up(columns, 256), 256, 0, planes, columns,
         strips, height, width, out);
}

int compiled_version() { return CUDART_VERSION; }

}  // namespace mme::cuda
