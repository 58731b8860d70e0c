// As many float lanes as the instruction set has: 16 with AVX-512, 8 with AVX2, else 4 by the
// compiler's own vectors (SSE2, NEON). Products and sums are the compiler's operators.
#pragma once

#include <cmath>
#include <cstdint>

#include "x86.h"

#define MME_WIDE inline __attribute__((always_inline))

// Beside the scalar ones of csrc/common, whose templates find both: this file comes first.
namespace mme {

typedef float Four __attribute__((vector_size(16)));

#if defined(__AVX512F__)
MME_WIDE __m512 madd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
MME_WIDE __m512 nmadd(__m512 a, __m512 b, __m512 c) { return _mm512_fnmadd_ps(a, b, c); }
MME_WIDE __m512 vmin(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
MME_WIDE __m512 vmax(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
// The smaller of two sizes with the first one's sign: one instruction.
MME_WIDE __m512 limited(__m512 a, __m512 limit) { return _mm512_range_ps(a, limit, 2); }
MME_WIDE __m512 inverse_root(__m512 a) { return _mm512_rsqrt14_ps(a); }
MME_WIDE __m512 rough_inverse(__m512 a) { return _mm512_rcp14_ps(a); }
#elif defined(__AVX2__)
MME_WIDE __m256 madd(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
MME_WIDE __m256 nmadd(__m256 a, __m256 b, __m256 c) { return _mm256_fnmadd_ps(a, b, c); }
MME_WIDE __m256 vmin(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
MME_WIDE __m256 vmax(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
MME_WIDE __m256 limited(__m256 a, __m256 limit) {
  return vmax(vmin(a, limit), _mm256_xor_ps(limit, _mm256_set1_ps(-0.f)));
}
MME_WIDE __m256 inverse_root(__m256 a) { return _mm256_rsqrt_ps(a); }
MME_WIDE __m256 rough_inverse(__m256 a) { return _mm256_rcp_ps(a); }
#else
MME_WIDE Four madd(Four a, Four b, Four c) { return a * b + c; }
MME_WIDE Four nmadd(Four a, Four b, Four c) { return c - a * b; }
MME_WIDE Four vmin(Four a, Four b) { return a < b ? a : b; }
MME_WIDE Four vmax(Four a, Four b) { return a > b ? a : b; }
MME_WIDE Four limited(Four a, Four limit) { return vmax(vmin(a, limit), -limit); }
MME_WIDE Four rough_inverse(Four a) { return 1.f / a; }
MME_WIDE Four inverse_root(Four a) {
#if defined(__SSE2__)
  return _mm_rsqrt_ps(a);
#else
  return Four{1.f / std::sqrt(a[0]), 1.f / std::sqrt(a[1]), 1.f / std::sqrt(a[2]),
              1.f / std::sqrt(a[3])};
#endif
}
#endif

namespace MME_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
using Wide = __m512;
MME_WIDE Wide load(const float* p) { return _mm512_loadu_ps(p); }
MME_WIDE void store(float* p, Wide a) { _mm512_storeu_ps(p, a); }
MME_WIDE Wide wide(float a) { return _mm512_set1_ps(a); }
// The lanes before `count`; zero elsewhere.
MME_WIDE Wide first_lanes(Wide a, int count) {
  return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), a);
}
#elif defined(__AVX2__)
constexpr int kLanes = 8;
using Wide = __m256;
MME_WIDE Wide load(const float* p) { return _mm256_loadu_ps(p); }
MME_WIDE void store(float* p, Wide a) { _mm256_storeu_ps(p, a); }
MME_WIDE Wide wide(float a) { return _mm256_set1_ps(a); }
MME_WIDE Wide first_lanes(Wide a, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
  return _mm256_and_ps(a, _mm256_castsi256_ps(kept));
}
#else
constexpr int kLanes = 4;
using Wide = Four;
MME_WIDE Wide load(const float* p) {
  Wide a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
MME_WIDE void store(float* p, Wide a) { __builtin_memcpy(p, &a, sizeof a); }
MME_WIDE Wide wide(float a) { return Wide{a, a, a, a}; }
MME_WIDE Wide first_lanes(Wide a, int count) {
  return Wide{count > 0 ? a[0] : 0, count > 1 ? a[1] : 0, count > 2 ? a[2] : 0,
              count > 3 ? a[3] : 0};
}
#endif

// `a`, read from memory once: left alone, gcc reads it again for each use, and the loads are what
// the iterations wait for.
MME_WIDE Wide once(Wide a) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(a));
#endif
  return a;
}
// The lanes of `a` moved up by one, and the last of `before` into the first.
MME_WIDE Wide shifted(Wide before, Wide a) {
#if defined(__AVX512F__)
  return (Wide)_mm512_alignr_epi32((__m512i)a, (__m512i)before, 15);
#else
  (void)before;
  return a;
#endif
}

// A bit for each lane in which the first is larger.
MME_WIDE unsigned above(Wide a, Wide b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<unsigned>(a[i] > b[i]) << i;
  return bits;
#endif
}

// Four lanes on every instruction set: the taps of one pixel.
MME_WIDE Four load4(const float* p) {
  Four a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}

MME_WIDE double sum(Wide a) {
  float lane[kLanes];
  store(lane, a);
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += lane[i];
  return total;
}

MME_WIDE float total_of(Wide a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(a);
#else
  float lane[kLanes];
  store(lane, a);
  Four four = load4(lane);
  for (int i = 4; i < kLanes; i += 4) four = four + load4(lane + i);
  return (four[0] + four[2]) + (four[1] + four[3]);
#endif
}

typedef int WideInt __attribute__((vector_size(sizeof(float) * kLanes)));
MME_WIDE WideInt truncated(Wide a) { return __builtin_convertvector(a, WideInt); }
MME_WIDE Wide to_float(WideInt a) {
  typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));
  return (Wide) __builtin_convertvector(a, Lanes);
}

// Denormal numbers, many times slower than others, become zero while this lives.
class Flush {
 public:
#if defined(__SSE2__)
  Flush() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~Flush() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  Flush() {}
  ~Flush() {}
#endif
};

MME_WIDE Four madd4(Four a, float b, Four c) {
  const Four all = {b, b, b, b};
#if defined(__AVX2__)
  return _mm_fmadd_ps(a, all, c);
#else
  return a * all + c;
#endif
}

}  // namespace MME_ISA
}  // namespace mme
