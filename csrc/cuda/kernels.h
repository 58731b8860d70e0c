// What module.cpp calls: one function a stage, free of CUDA's headers, so that any C++ compiler
// builds the module. Pointers are device memory; everything is queued on the stream, and nothing is
// allocated, waited for or decided by what the memory holds, so that a CUDA graph can capture it.
#pragma once

#include <cstdint>

#include "../common/optical_flow.h"

namespace mme::cuda {

// Where the work goes. The current device is set for the call and put back after it.
struct Queue {
  int device;
  void* stream;
};

struct TrackSizes {
  int64_t batch, pairs;
  int height, width;
  int64_t seed_batches, tracks, starts;
  int length;
};

struct TrackOptions {
  float bound;
  bool half, median, bilinear;
};

struct HistogramOptions {
  int bins, cell;
  bool linear, mean, replicate, l2;
};

// Elements from one image, channel, bin, row and column of cells to the next.
struct CellStrides {
  int64_t image, channel, bin, row, column;
};

struct WindowSizes {
  int64_t batch, frames, channels;
  int height, width;
  int64_t point_stride, seed_batches, tracks, starts;
  int length;
};

constexpr int kLongestTrack = 95;  // steps whose outputs one warp can stage in shared memory

void tracks(const void* flow, const float* seeds, const int32_t* starts, const int32_t* steps,
            const TrackSizes& sizes, const TrackOptions& options, float* points,
            float* displacements, bool* visible, Queue queue);
void median_filter(const float* planes, int64_t count, int height, int width, float* out,
                   Queue queue);
void histograms(const void* images, bool is_u8, int64_t count, int64_t channels, int height,
                int width, bool vectors, const HistogramOptions& options, float* out,
                const CellStrides& strides, Queue queue);
void windows(const void* images, bool is_u8, const WindowSizes& sizes, const float* points,
             const int32_t* starts, const int32_t* times, const HistogramOptions& options,
             float* out, Queue queue);
void patch_norm(const float* values, int64_t count, int64_t tracks, int64_t features,
                bool coordinate, float eps, float* out, float* mean, float* std, Queue queue);

// TV-L1 of pairs [count, 2] of frames: out [count, 2, height, width], and in `work` the
// pixel-iterations of each. `team`: blocks that share a pair (a cluster, so up to 8 where the
// device has them, else 1), or 0 for as many as suit. The workspace holds what
// optical_flow_workspace says, in bytes, for the same arguments.
int64_t optical_flow_workspace(int height, int width, int64_t count, const FlowOptions& options,
                               int team, int device);
void optical_flow(const void* frames, bool is_u8, int64_t channels, int height, int width,
                  const int32_t* pairs, int64_t count, const float* initial,
                  const FlowOptions& options, float* out, int64_t* work, void* workspace, int team,
                  Queue queue);

// CUDA's version as this was compiled against, as 1000 * major + 10 * minor.
int compiled_version();

}  // namespace mme::cuda
