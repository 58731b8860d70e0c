// What lets one formula compile for the host and for the device.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MME_FN __host__ __device__ __forceinline__
#else
#define MME_FN inline __attribute__((always_inline))
#endif

namespace mme {

constexpr float kPi = 3.14159265358979323846f;

// Separately rounded product and sum: a compiler that fuses them would decide ties differently on
// the two floors. On the host -ffp-contract=off says the same.
MME_FN float mul(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
MME_FN float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
MME_FN float root(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return std::sqrt(a);
#endif
}

template <class T>
MME_FN T clamp(T value, T low, T high) {
  return value < low ? low : (value > high ? high : value);
}

// The exponent's bits; all of them are set for NaN and infinity. By the bits, so that -ffast-math
// could not remove the question.
constexpr uint32_t kExponent = 0x7f800000u;
MME_FN uint32_t exponent(float a) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(a) & kExponent;
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &a, sizeof bits);
  return bits & kExponent;
#endif
}
MME_FN uint32_t larger(uint32_t a, uint32_t b) { return a < b ? b : a; }
MME_FN bool finite(float a) { return exponent(a) != kExponent; }

// Borders: the index that stands for `i` in a row of `n`.
MME_FN int replicate(int i, int n) { return clamp(i, 0, n - 1); }
MME_FN int reflect(int i, int n) { return i < 0 ? -i : (i >= n ? 2 * n - 2 - i : i); }

}  // namespace mme
