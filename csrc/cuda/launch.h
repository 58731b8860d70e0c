// What every stage shares: the device guard, launching with its errors, and reading.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../common/platform.h"
#include "kernels.h"

// A kernel's shared memory whose size the launch gives. tests/cuda_emulator defines its own, and
// MME_CLUSTER_BARRIER.
#if !defined(MME_DYNAMIC_SHARED)
#define MME_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace mme::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the caller's next call does not see it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "no CUDA device");
    changed_ = before_ != device;
    if (changed_) check(cudaSetDevice(device), "cannot use the CUDA device");
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Queues `blocks` x `threads` of a kernel, in clusters of `cluster` blocks; none for none. Only the
// launch itself is checked: what fails later shows in the caller's own synchronisation.
template <class... Formal, class... Actual>
void launch_clusters(const char* what, Queue queue, void (*kernel)(Formal...), int64_t blocks,
                     int cluster, int threads, size_t shared, Actual&&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) {
    throw std::runtime_error(std::string(what) + ": more blocks than one launch can hold");
  }
  const DeviceGuard guard(queue.device);
  if (shared > 48 * 1024) {  // more must be asked for
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          what);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(queue.stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;  // older devices know none
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Actual>(arguments)...), what);
}
template <class... Formal, class... Actual>
void launch(const char* what, Queue queue, void (*kernel)(Formal...), int64_t blocks, int threads,
            size_t shared, Actual&&... arguments) {
  launch_clusters(what, queue, kernel, blocks, 1, threads, shared,
                  std::forward<Actual>(arguments)...);
}

// All threads of a cluster meet, and see what any of them wrote before, in global memory too.
__device__ __forceinline__ void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#elif defined(MME_CLUSTER_BARRIER)
  MME_CLUSTER_BARRIER();
#else
  __syncthreads();  // a cluster is one block
#endif
}

// Reads memory that no kernel here writes, through the read-only path.
template <class T>
MME_FN T read(const T* address) {
#if defined(__CUDA_ARCH__)
  return __ldg(address);
#else
  return *address;
#endif
}
MME_FN float as_float(float value) { return value; }
MME_FN float as_float(__half value) { return __half2float(value); }

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace mme::cuda
