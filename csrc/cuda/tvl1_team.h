// A team: the blocks of a cluster, which work on one pair at a time and meet at barriers; and where
// things lie in the team's piece of the workspace.
#pragma once

#include "../common/optical_flow.h"
#include "launch.h"

namespace mme::cuda {

constexpr int kTeamThreads = 192;  // of a block; two blocks a multiprocessor leave 168 registers
constexpr int kTeamWarps = kTeamThreads / kWarp;

struct Team {
  int rank, size;  // of the block in its cluster

  __device__ __forceinline__ explicit Team(int blocks)
      : rank(static_cast<int>(blockIdx.x) % blocks), size(blocks) {}
  // Neighbouring numbers are in different blocks, so that few tiles occupy all of them.
  __device__ __forceinline__ int warp() const {
    return static_cast<int>(threadIdx.x) / kWarp * size + rank;
  }
  // What any thread of the team wrote before it, all of them see after it.
  __device__ __forceinline__ void barrier() const {
    if (size > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }
  template <class Work>
  __device__ __forceinline__ void for_each(int64_t count, const Work& work) const {
    const int64_t step = static_cast<int64_t>(size) * kTeamThreads;
    for (int64_t i = rank * kTeamThreads + static_cast<int>(threadIdx.x); i < count; i += step) {
      work(i);
    }
  }
  template <class Work>
  __device__ __forceinline__ void for_pixels(int width, int height, const Work& work) const {
    for_each(static_cast<int64_t>(width) * height, [&](int64_t i) {
      const int y = static_cast<int>(i / width);
      work(static_cast<int>(i - static_cast<int64_t>(y) * width), y);
    });
  }
};

// A warp's tile is kColumns wide, two columns a lane. kDeep iterations spoil as many columns on
// either side of it, so that tiles overlap.
constexpr int kColumns = 2 * kWarp;
template <bool kGamma>
struct Shape {
  static constexpr int kDeep = kGamma ? 3 : 5;  // iterations that registers hold
  static constexpr int kFlow = kGamma ? 3 : 2;  // u, v, and the illumination w
  static constexpr int kData = kGamma ? 5 : 4;  // planes of the data term
  static constexpr int kStride = kColumns - 2 * kDeep;
};

struct Level {
  int width, height;
  int strips, bands;  // tiles across and down
  int pitch;          // floats of a plane's row: what the strips cover
  int image;          // offset in the planes of the pyramid
};

// Rows of some planes: row by row, its planes one after another. Offsets are counted in floats from
// the beginning of a team's memory, in 32 bits: they live in registers.
struct Rows {
  float* memory;
  int offset, pitch, planes;  // pitch: of a plane's row

  __device__ __forceinline__ float* at(int y, int plane) const {
    return memory + (offset + (y * planes + plane) * pitch);
  }
};

// At the beginning stands the number of the team's pair. Flow, dual variables and errors are there
// twice: what is read, and what is written meanwhile.
struct Layout {
  int first, second, texture, flow[2], dual[2], data, errors[2], total;
};

struct DualSteps {
  float tau, slope;  // tau / theta
};

struct FlowPlan {
  int levels, team, teams;
  DualSteps steps;
  Level level[kMaxLevels];
  Layout at;
};

}  // namespace mme::cuda
