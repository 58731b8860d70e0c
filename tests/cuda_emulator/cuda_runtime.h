// Runs the project's CUDA sources on the host: each thread of a block is a fibre, blocks run one
// after another (those of a cluster at once), and a fibre yields only at barriers. Compiling
// csrc/cuda/*.cu as C++ with this folder first on the include path replaces CUDA's headers; nothing
// in the sources knows of it.
//
// Checked so: indices, barriers, borders, launch sizes and arithmetic of the very kernels. Not
// checked: memory coalescing, caches, device instructions where a header branches on __CUDA_ARCH__.
// Fibres run in ascending or, by MME_EMULATOR_REVERSE=1, descending order of threads, so that
// results which hang on a missing barrier differ between the two. Shared memory starts as NaN in
// every block. In a cluster, static shared memory would be common to its blocks, so that kernels of
// clusters have dynamic shared memory only: a launch that breaks this fails.
#pragma once

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// All shared variables lie in one section, which each block finds poisoned.
#define __shared__ static __attribute__((section("emulated_shared")))
#define __grid_constant__
#define MME_CLUSTER_BARRIER() emulator::wait_for_cluster()
#define MME_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulator::dynamic_shared())

#define CUDART_VERSION 13000

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kWarp = 32;

void* dynamic_shared();
void wait_for_warp();
void wait_for_block();
void wait_for_cluster();
int lane();
// 16 bytes that belong to a lane of the running thread's warp: others after every wait_for_warp, so
// that those of the exchange before may still be read.
char* warp_slot(int lane);
bool run(dim3 grid, dim3 block, unsigned cluster, size_t shared,
         const std::function<void()>& thread);

template <class T>
T exchange(T value, int from) {
  static_assert(sizeof(T) <= 16, "a lane exchanges 16 bytes");
  const char* theirs = warp_slot(from);
  std::memcpy(warp_slot(lane()), &value, sizeof value);
  wait_for_warp();
  std::memcpy(&value, theirs, sizeof value);
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
// Out of the warp's range a thread gets its own value back.
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const int from = emulator::lane() - distance;
  return emulator::exchange(value, from < 0 ? emulator::lane() : from);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int from = emulator::lane() + distance;
  return emulator::exchange(value, from >= emulator::kWarp ? emulator::lane() : from);
}
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0;

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// A device of the newest kind, with few multiprocessors.
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 4, cudaSuccess;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  return attributes->ptxVersion = 90, cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
namespace emulator {
inline std::map<void (*)(), size_t> shared_limits;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > 227 * 1024) return 1;
  emulator::shared_limits[reinterpret_cast<void (*)()>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  return std::memset(memory, value, bytes), cudaSuccess;
}

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
  const auto limit = emulator::shared_limits.find(reinterpret_cast<void (*)()>(kernel));
  const bool asked = limit != emulator::shared_limits.end();
  if (config->dynamicSmemBytes > (asked ? limit->second : 48 * 1024)) return 9;
  const unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
  if (cluster == 0 || cluster > 8 || config->gridDim.x % cluster) return 9;
  const bool ran =
      emulator::run(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes,
                    [&] { kernel(static_cast<Formal>(arguments)...); });
  return ran ? cudaSuccess : 9;
}
