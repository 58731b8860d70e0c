// Runs the project's CUDA sources on the host: each thread of a block is a fibre, blocks run one
// after another, and a fibre yields only at barriers. Compiling csrc/cuda/*.cu as C++ with this
// folder first on the include path replaces CUDA's headers; nothing in the sources knows of it.
//
// Checked so: indices, barriers, borders, launch sizes and arithmetic of the very kernels. Not
// checked: memory coalescing, caches, device instructions where a header branches on __CUDA_ARCH__.
// Fibres run in ascending or, by MME_EMULATOR_REVERSE=1, descending order of threads, so that
// results which hang on a missing barrier differ between the two. Shared memory starts as NaN in
// every block.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All shared variables lie in one section, which each block finds poisoned.
#define __shared__ static __attribute__((section("emulated_shared")))
#define MME_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulator::dynamic_shared())

#define CUDART_VERSION 13000

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
struct uint2 {
  unsigned x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kWarp = 32;

void* dynamic_shared();
void wait_for_warp();
void wait_for_block();
int lane();
char* warp_slot(int lane);  // 16 bytes that belong to a lane of the running thread's warp
void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread);

template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) <= 16, "a lane exchanges 16 bytes");
  std::memcpy(warp_slot(lane()), &value, sizeof value);
  wait_for_warp();
  std::memcpy(&value, warp_slot(from), sizeof value);
  wait_for_warp();
  return value;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait_for_warp(); }
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::exchange(value, from % emulator::kWarp);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value, emulator::lane() ^ mask);
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : 101; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == 101 ? "invalid device ordinal" : "invalid configuration argument";
}

template <class... Formal, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Formal...),
                               Actual&&... arguments) {
  const unsigned threads = config->blockDim.x;
  if (threads == 0 || threads > 1024 || config->gridDim.x == 0) return 9;
  if (config->dynamicSmemBytes > 48 * 1024) return 9;
  emulator::run(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                [&] { kernel(static_cast<Formal>(arguments)...); });
  return cudaSuccess;
}
