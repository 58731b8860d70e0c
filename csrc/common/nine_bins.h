// The hot case of descriptors.h: uint8 frames and nine hard bins, in half the instructions and with
// the same results. Everything is scaled by 1/256, a power of two, so that every value rounds as it
// would unscaled; products and sums of gradients are exact, fused or not. Valid for |g| <= 1020,
// where tests/test_cuda_emulated.py compares every gradient there is.
#pragma once

#include "descriptors.h"

namespace mme {

constexpr float kNineBinsScale = 256.f;

MME_FN uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// 128 + v / 256 for byte k of a word: the byte is placed in the mantissa, which needs no
// conversion. Eight of these add up without rounding, and differences lose the 128.
MME_FN float biased_byte(uint32_t word, int k) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(__byte_perm(word, 0x43000000u, 0x7404u + (k << 4)));
#else
  const uint32_t bits = 0x43000000u | ((word >> (8 * k)) & 255u) << 8;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// 1 where value > 0, else 0, for values that are 0 or at least 2^-40 in size.
MME_FN float step_of(float scale, float value, float offset) {
#if defined(__CUDA_ARCH__)
  return __saturatef(__fmaf_rn(scale, value, offset));
#else
  return clamp(std::fma(scale, value, offset), 0.f, 1.f);
#endif
}

// Bin of a gradient divided by 256, as a float. With a = |x| and b = |y|, n counts the edges
// k*pi/9, k = 1 ... 4, with a*cot(k*pi/9) > b; a gradient whose components differ in sign lies in
// the mirror image 8 - n. No integer gradient up to 1020 lies nearer than 2e-4 to an edge, so 2^40
// times the difference is 0 (for no gradient at all), below 0 or above 1.
MME_FN float nine_bin(Gradient g) {
  constexpr float k2To40 = 1099511627776.f;
  const float a = fabsf(g.x), b = mul(-k2To40, fabsf(g.y));
  const float n = add(
      add(step_of(2.7474774194546225f * k2To40, a, b), step_of(1.1917535925942100f * k2To40, a, b)),
      add(step_of(0.5773502691896258f * k2To40, a, b),
          step_of(0.1763269807084650f * k2To40, a, b)));
  // x*y is 0 or at least 2^-16 in size: the offset gives 0 the sign +, so it is never mirrored.
  const float side = g.x * g.y + 9.5367431640625e-7f;
  return side < 0.f ? add(8.f, -n) : n;
}

// base + bin * stride without a conversion: the sum with 2^23 has the integer in its low bits.
// `base` comes from nine_bin_base.
MME_FN uint32_t nine_bin_base(uint32_t base) { return base - 0x4b000000u; }
MME_FN uint32_t nine_bin_offset(float bin, float stride, uint32_t base) {
  return bits_of(bin * stride + 8388608.f) + base;
}

// Magnitude of a gradient divided by 256: the root, rounded to nearest, of 0 or of 2^-16 to 32.
// Over that range the device needs neither the branch of __fsqrt_rn nor its slow path, which a flat
// pixel would take; these are the steps that the compiler itself emits within the range, with an
// offset that only 0 feels.
MME_FN float nine_bins_magnitude(Gradient g) {
  const float squares = g.x * g.x + g.y * g.y;
#if defined(__CUDA_ARCH__)
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(squares + 8.673617379884035e-19f));
  const float guess = mul(squares, inverse), half = mul(inverse, 0.5f);
  return __fmaf_rn(__fmaf_rn(-guess, guess, squares), half, guess);
#else
  return root(squares);
#endif
}

}  // namespace mme
