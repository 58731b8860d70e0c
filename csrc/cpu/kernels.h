// The table of one instruction set's kernels. Every stage is compiled once for each set
// (MME_ISA = baseline, avx2, avx512), and module.cpp picks a table when it is loaded.
//
// These files keep to what they inline: a library template instantiated for AVX-512 could be the
// copy that the linker keeps for all.
#pragma once

#include <cstdint>

#include "../common/optical_flow.h"

namespace mme {

struct TrackSizes {
  long batch, pairs, height, width, seed_batches, tracks, starts, length;
};

struct TrackOptions {
  float bound;
  bool median, bilinear;
};

struct HistogramOptions {
  int bins, cell;
  bool linear, mean, replicate, l2;
};

// Elements from one image, channel, bin, row and column of cells to the next.
struct CellStrides {
  long image, channel, bin, row, column;
};

// Where TV-L1 spends its time, ns of CPU summed over pairs, and the pixel-iterations done then;
// counted while `on`. Of a pair that threads share, its caller's part.
struct FlowTimes {
  bool on;
  int64_t work, whole, warps, medians, iterations;
};
extern FlowTimes flow_times;  // in module.cpp

struct Kernels {
  const char* name;
  void (*tracks)(const float* flow, const float* seeds, const int32_t* starts, const int32_t* steps,
                 TrackSizes sizes, TrackOptions options, float* points, float* displacements,
                 bool* visible, int threads);
  void (*median_filter)(const float* planes, long count, long height, long width, float* out,
                        int threads);
  void (*histograms)(const void* images, bool is_u8, long count, long channels, long height,
                     long width, bool vectors, HistogramOptions options, float* out,
                     CellStrides strides, int threads);
  void (*windows)(const void* images, bool is_u8, long batch, long frames, long channels,
                  long height, long width, const float* points, long point_stride,
                  long seed_batches, long tracks, const int32_t* starts, const int32_t* times,
                  long length, HistogramOptions options, float* out, int threads);
  void (*patch_norm)(const float* values, long count, long tracks, long features, bool coordinate,
                     float eps, float* out, float* mean, float* std, int threads);
  // False if memory ran out. `work`: pixel-iterations of each pair.
  bool (*optical_flow)(const void* frames, bool is_u8, long channels, long height, long width,
                       const int32_t* pairs, long count, const float* initial, FlowOptions options,
                       float* out, int64_t* work, int threads);
};

namespace baseline {
extern const Kernels kTrajectories, kDescriptors, kPatchNorm, kOpticalFlow;
}
namespace avx2 {
extern const Kernels kTrajectories, kDescriptors, kPatchNorm, kOpticalFlow;
}
namespace avx512 {
extern const Kernels kTrajectories, kDescriptors, kPatchNorm, kOpticalFlow;
}

}  // namespace mme
