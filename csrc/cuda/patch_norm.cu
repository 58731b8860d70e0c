// Patch normalisation on CUDA: csrc/common/patch_norm.h. The lanes of a warp (a small patch: eight
// of them) hold a patch in registers, so that values are read once and written once; sums go lane
// by lane, then through a fixed butterfly.
#include "../common/patch_norm.h"
#include "launch.h"

namespace mme::cuda {
namespace {

constexpr int kThreads = 128;

template <int kLanes>
__device__ __forceinline__ float sum_of_lanes(float value) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    value = add(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}

// kLanes: lanes a patch. kHeld: values a lane holds, enough for the patch; 0 for patches that do
// not fit, read thrice.
template <int kLanes, int kHeld>
__global__ void __launch_bounds__(kThreads)
    patch_kernel(const float* values, int64_t count, int size, float eps, float* out, float* mean,
                 float* std) {
  const int lane = threadIdx.x % kLanes;
  const int64_t wanted = global_thread() / kLanes;
  const bool exists = wanted < count;
  const int64_t patch = exists ? wanted : count - 1;  // all lanes of a warp take part in its sums
  const float* z = values + patch * size;
  float* target = out + patch * size;
  const float pivot = read(z), number = static_cast<float>(size);

  if (kHeld > 0) {
    constexpr int kSlots = kHeld > 0 ? kHeld : 1;
    float held[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int k = i * kLanes + lane;
      held[i] = k < size ? relative(read(z + k), pivot) : 0.f;
    }
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) sum = add(sum, held[i]);
    const float shift = sum_of_lanes<kLanes>(sum) / number;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const float square = squared_deviation(held[i], shift);
      squares = add(squares, i * kLanes + lane < size ? square : 0.f);
    }
    const float spread = deviation(sum_of_lanes<kLanes>(squares), size, eps);
    if (!exists) return;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int k = i * kLanes + lane;
      if (k < size) target[k] = normalised(held[i], shift, spread);
    }
    if (lane == 0) mean[patch] = add(pivot, shift), std[patch] = spread;
    return;
  }

  float sum = 0.f;
  for (int k = lane; k < size; k += kLanes) sum = add(sum, relative(read(z + k), pivot));
  const float shift = sum_of_lanes<kLanes>(sum) / number;
  float squares = 0.f;
  for (int k = lane; k < size; k += kLanes) {
    squares = add(squares, squared_deviation(relative(read(z + k), pivot), shift));
  }
  const float spread = deviation(sum_of_lanes<kLanes>(squares), size, eps);
  if (!exists) return;
  for (int k = lane; k < size; k += kLanes) {
    target[k] = normalised(relative(read(z + k), pivot), shift, spread);
  }
  if (lane == 0) mean[patch] = add(pivot, shift), std[patch] = spread;
}

// One thread a patch's feature; neighbours read neighbouring features of one track. kTracks as
// kHeld above.
template <int kTracks>
__global__ void __launch_bounds__(128, 10)
    coordinate_kernel(const float* values, int64_t total, int tracks, int features, float eps,
                      float* out, float* mean, float* std) {
  const int64_t id = global_thread();
  if (id >= total) return;
  const int64_t patch = id / features;
  const int64_t first = patch * tracks * features + (id - patch * features);
  const float* z = values + first;
  float* target = out + first;
  const int64_t stride = features;
  const float pivot = read(z), number = static_cast<float>(tracks);

  if (kTracks > 0) {
    constexpr int kSlots = kTracks > 0 ? kTracks : 1;
    float held[kSlots];
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      held[k] = k < tracks ? relative(read(z + k * stride), pivot) : 0.f;
    }
    float sum = 0.f;
#pragma unroll
    for (int k = 1; k < kSlots; ++k) sum = add(sum, held[k]);
    const float shift = sum / number;
    float squares = 0.f;
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      const float square = squared_deviation(held[k], shift);
      squares = add(squares, k < tracks ? square : 0.f);
    }
    const float spread = deviation(squares, tracks, eps);
#pragma unroll
    for (int k = 0; k < kSlots; ++k) {
      if (k < tracks) target[k * stride] = normalised(held[k], shift, spread);
    }
    mean[id] = add(pivot, shift), std[id] = spread;
    return;
  }

  float sum = 0.f;
  for (int k = 1; k < tracks; ++k) sum = add(sum, relative(read(z + k * stride), pivot));
  const float shift = sum / number;
  float squares = 0.f;
  for (int k = 0; k < tracks; ++k) {
    squares = add(squares, squared_deviation(relative(read(z + k * stride), pivot), shift));
  }
  const float spread = deviation(squares, tracks, eps);
  for (int k = 0; k < tracks; ++k) {
    target[k * stride] = normalised(relative(read(z + k * stride), pivot), shift, spread);
  }
  mean[id] = add(pivot, shift), std[id] = spread;
}

}  // namespace

void patch_norm(const float* values, int64_t count, int64_t tracks, int64_t features,
                bool coordinate, float eps, float* out, float* mean, float* std, Queue queue) {
  if (tracks * features > INT32_MAX) {
    throw std::invalid_argument("a patch has " + std::to_string(tracks * features) +
                                " values; must be fewer than 2^31");
  }
  const int k = static_cast<int>(tracks), f = static_cast<int>(features), size = k * f;
  if (size == 0) return;
  if (coordinate) {
    const auto kernel =
        k <= 4 ? coordinate_kernel<4> : (k <= 16 ? coordinate_kernel<16> : coordinate_kernel<0>);
    launch("patch_norm", queue, kernel, divide_up(count * f, 128), 128, 0, values, count * f, k, f,
           eps, out, mean, std);
  } else {
    const int lanes = size <= 64 ? 8 : kWarp;
    const auto kernel = size <= 64           ? patch_kernel<8, 8>
                        : size <= 8 * kWarp  ? patch_kernel<kWarp, 8>
                        : size <= 24 * kWarp ? patch_kernel<kWarp, 24>
                                             : patch_kernel<kWarp, 0>;
    launch("patch_norm", queue, kernel, divide_up(count * lanes, kThreads), kThreads, 0, values,
           count, size, eps, out, mean, std);
  }
}

}  // namespace mme::cuda
