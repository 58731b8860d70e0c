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

// Camera motion: interest points and corners of grey frames. False if memory ran out. A frame's
// points have room for `most`, or `room`; `found` says how many there are.
struct CameraKernels {
  // SURF's points (x, y), their filters' sides and strengths, the strongest first.
  bool (*surf_points)(const uint8_t* frames, long count, long height, long width, int octaves,
                      float threshold, long most, float* places, float* sides, float* strengths,
                      int64_t* found, int threads);
  // Directions (cos, sin) and descriptors of points whose frames have room for `stride`.
  bool (*surf_descriptors)(const uint8_t* frames, long count, long height, long width,
                           const float* places, const float* sides, const int64_t* found,
                           long stride, long room, const float* falloff, const float* disc,
                           const float* compass, bool upright, bool extended, float* directions,
                           float* out, int threads);
  bool (*corners)(const uint8_t* frames, long count, long height, long width, float quality,
                  long candidates, long most, float* places, int64_t* found, int threads);
  // Points of the first frame of `count` pairs that match one of the second, and where that lies.
  bool (*mutual)(const float* points, const float* descriptors, const bool* valid, long room,
                 long values, const int64_t* pairs, long count, float window, float* targets,
                 bool* matched, int threads);
  // Second frames where homographies [count, 3, 3] take them, the first ones' outside the border.
  void (*warp)(const void* first, const void* second, bool is_u8, const double* homographies,
               long count, long height, long width, int border, float* out, int threads);
};

namespace baseline {
extern const Kernels kTrajectories, kDescriptors, kPatchNorm, kOpticalFlow;
extern const CameraKernels kCameraMotion;
}  // namespace baseline
namespace avx2 {
extern const Kernels kTrajectories, kDescriptors, kPatchNorm, kOpticalFlow;
extern const CameraKernels kCameraMotion;
}  // namespace avx2
namespace avx512 {
extern const Kernels kTrajectories, kDescriptors, kPatchNorm, kOpticalFlow;
extern const CameraKernels kCameraMotion;
}  // namespace avx512

}  // namespace mme
