// `list_points` of sixteen points at once, by AVX-512: the same numbers as in row_points.h.
#pragma once

#include "row_lanes.h"

#include "../common/track_rows.h"

#if defined(__AVX512BW__)

namespace mme {
namespace MME_ISA {
namespace {

using W = __m512i;
constexpr long kWide = 16;

MME_LANE W load_wide(const void* at) { return _mm512_loadu_si512(at); }
MME_LANE W words_wide(int value) { return _mm512_set1_epi16(static_cast<int16_t>(value)); }

MME_LANE W apart_wide(W a, W b) {
  return _mm512_min_epu16(_mm512_abs_epi16(_mm512_subs_epi16(a, b)), words_wide(255));
}

MME_LANE W lengths_wide(W value) {
  const W lower =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4));
  const W upper =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 5, 6, 6, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8));
  return _mm512_max_epi16(_mm512_shuffle_epi8(lower, _mm512_and_si512(value, words_wide(15))),
                          _mm512_shuffle_epi8(upper, _mm512_srli_epi16(value, 4)));
}

// Of sixteen points, which certainly stand on one pixel in both tracks, in steps of 2^-shift px.
struct StandingWide {
  StandingWide(const RowLayout& layout, long plane, int shift) : by(_mm_cvtsi32_si128(shift)) {
    const int32_t slack[2] = {static_cast<int32_t>(plane * layout.scale) >> 1,
                              static_cast<int32_t>((plane - 1) * layout.scale) >> 1};
    for (int k = 0; k < 4; ++k) {
      const int32_t off = k % 2 ? slack[k / 2] : -slack[k / 2];
      offsets[k] = words_wide((layout.half + off) >> (16 - shift));
    }
  }
  MME_LANE __mmask16 operator()(W came, W there) const {
    const auto pixel = [&](W moves, int k) {
      return _mm512_sra_epi16(_mm512_add_epi16(moves, offsets[k]), by);
    };
    const W one = pixel(came, 0);
    const W other = _mm512_or_si512(_mm512_xor_si512(one, pixel(came, 1)),
                                    _mm512_or_si512(_mm512_xor_si512(one, pixel(there, 2)),
                                                    _mm512_xor_si512(one, pixel(there, 3))));
    return _mm512_testn_epi32_mask(other, other);
  }
  W offsets[4];
  __m128i by;
};

// Plane 0 as far from sixteen points as `moved` says, in 1/64 of the grid.
MME_LANE W predicted_wide(const int16_t* first, W moved, int gx) {
  const __m128i pairs = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
  const W of_x = _mm512_broadcast_i32x4(pairs);
  const W of_y = _mm512_or_si512(of_x, words_wide(0x0202));
  const W size = _mm512_abs_epi16(moved);
  W corner[4];  // the point come to, the one beside it, and those beyond them
  if (__builtin_expect(_mm512_test_epi16_mask(size, words_wide(~63)) == 0, 1)) {
    const __mmask32 left = _mm512_movepi16_mask(_mm512_shuffle_epi8(moved, of_x));
    const __mmask32 up = _mm512_movepi16_mask(_mm512_shuffle_epi8(moved, of_y));
    const auto beside = [&](const int16_t* at) {
      return _mm512_mask_mov_epi16(load_wide(at + 2), left, load_wide(at - 2));
    };
    const int16_t *above = first - 2 * gx, *below = first + 2 * gx;
    corner[0] = load_wide(first);
    corner[1] = beside(first);
    corner[2] = _mm512_mask_mov_epi16(load_wide(below), up, load_wide(above));
    corner[3] = _mm512_mask_mov_epi16(beside(below), up, beside(above));
  } else {
    const __mmask32 negative = _mm512_movepi16_mask(moved);
    const auto signed_as = [&](W value) {
      return _mm512_mask_sub_epi16(value, negative, _mm512_setzero_si512(), value);
    };
    const W sign = signed_as(_mm512_min_epi16(size, words_wide(1)));
    const W cells = signed_as(_mm512_srli_epi16(size, 6));
    const W iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const W place =
        _mm512_add_epi32(iota, _mm512_madd_epi16(cells, _mm512_set1_epi32(gx << 16 | 1)));
    const W beside = _mm512_madd_epi16(sign, _mm512_set1_epi32(1));
    const W next = _mm512_add_epi32(place, _mm512_madd_epi16(sign, _mm512_set1_epi32(gx << 16)));
    const auto gather = [&](W at) { return _mm512_i32gather_epi32(at, first, 4); };
    corner[0] = gather(place), corner[1] = gather(_mm512_add_epi32(place, beside));
    corner[2] = gather(next), corner[3] = gather(_mm512_add_epi32(next, beside));
  }
  const W share = _mm512_slli_epi16(_mm512_and_si512(size, words_wide(63)), 9);
  const auto between = [](W a, W b, W by) {
    return _mm512_add_epi16(a, _mm512_mulhrs_epi16(_mm512_sub_epi16(b, a), by));
  };
  const W across = _mm512_shuffle_epi8(share, of_x);
  return between(between(corner[0], corner[1], across), between(corner[2], corner[3], across),
                 _mm512_shuffle_epi8(share, of_y));
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
#endif
