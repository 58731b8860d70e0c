// Eight lanes: as wide as a HOG cell. AVX2 keeps masks in vectors, AVX-512 in mask registers; the
// baseline has no lanes and runs the scalar formulas of csrc/common, which is how these are tested.
#pragma once

#if defined(__AVX2__)
#define MME_SIMD 1
#include "x86.h"

#include <cstdint>

#define MME_LANE inline __attribute__((always_inline))

namespace mme {

// Beside the scalar ones of csrc/common/median.h, which includes after this one find both.
MME_LANE __m256 vmin(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
MME_LANE __m256 vmax(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }

namespace MME_ISA {

using F = __m256;
using I = __m256i;
using mme::vmax;
using mme::vmin;

MME_LANE F set(float a) { return _mm256_set1_ps(a); }
MME_LANE I set(int a) { return _mm256_set1_epi32(a); }
MME_LANE I vmin(I a, I b) { return _mm256_min_epi32(a, b); }
MME_LANE I vmax(I a, I b) { return _mm256_max_epi32(a, b); }
MME_LANE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
MME_LANE F negate_where_negative(F value, F sign) {
  return _mm256_xor_ps(value, _mm256_and_ps(sign, set(-0.f)));
}

#if defined(__AVX512VL__)
using Mask = __mmask8;
MME_LANE Mask ge(F a, F b) { return _mm256_cmp_ps_mask(a, b, _CMP_GE_OQ); }
MME_LANE Mask lt(F a, F b) { return _mm256_cmp_ps_mask(a, b, _CMP_LT_OQ); }
MME_LANE Mask le(F a, F b) { return _mm256_cmp_ps_mask(a, b, _CMP_LE_OQ); }
MME_LANE Mask both(Mask a, Mask b) { return _kand_mask8(a, b); }
MME_LANE Mask first_only(Mask a, Mask b) { return _kandn_mask8(b, a); }
MME_LANE Mask inverse(Mask a) { return _knot_mask8(a); }
MME_LANE Mask all_lanes() { return 0xff; }
MME_LANE F add_where(Mask mask, F sum, F value) {
  return _mm256_mask_add_ps(sum, mask, sum, value);
}
MME_LANE F where(Mask mask, F value) { return _mm256_maskz_mov_ps(mask, value); }
MME_LANE int bits(Mask mask) { return mask; }
#else
using Mask = __m256;
MME_LANE Mask ge(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
MME_LANE Mask lt(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
MME_LANE Mask le(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
MME_LANE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
MME_LANE Mask first_only(Mask a, Mask b) { return _mm256_andnot_ps(b, a); }
MME_LANE Mask inverse(Mask a) {
  return _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1)));
}
MME_LANE Mask all_lanes() { return _mm256_castsi256_ps(_mm256_set1_epi32(-1)); }
MME_LANE F add_where(Mask mask, F sum, F value) {
  return _mm256_add_ps(sum, _mm256_and_ps(mask, value));
}
MME_LANE F where(Mask mask, F value) { return _mm256_and_ps(mask, value); }
MME_LANE int bits(Mask mask) { return _mm256_movemask_ps(mask); }
#endif

// Rows of 8x8 become columns.
MME_LANE void transpose(F r[8]) {
  F t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

}  // namespace MME_ISA
}  // namespace mme
#endif
