// Sixteen words or eight numbers at once: what decoding the rows of a store needs beside simd.h.
#pragma once

#include "simd.h"

#if defined(MME_SIMD)

namespace mme {
namespace MME_ISA {
namespace {

MME_LANE I load(const void* at) { return _mm256_loadu_si256(static_cast<const I*>(at)); }
MME_LANE void store(void* at, I value) { _mm256_storeu_si256(static_cast<I*>(at), value); }
MME_LANE I bytes_at(const uint8_t* at) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}
MME_LANE I iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

// The low bytes of eight numbers below 256.
MME_LANE void put_bytes(I value, uint8_t* out) {
  const __m128i words =
      _mm_packus_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}

// For each pattern of eight bytes, where those lie in it that are set, one after the other; and
// which of them each byte is. Where there is none, zero comes out.
struct Orders {
  alignas(64) uint8_t close[256][8], apart[256][8];
  constexpr Orders() : close(), apart() {
    for (int pattern = 0; pattern < 256; ++pattern) {
      uint8_t next = 0;
      for (int i = 0; i < 8; ++i) close[pattern][i] = 0x80;
      for (int i = 0; i < 8; ++i) {
        const bool set = pattern >> i & 1;
        if (set) close[pattern][next] = static_cast<uint8_t>(i);
        apart[pattern][i] = set ? next++ : 0x80;
      }
    }
  }
};
constexpr Orders kOrders;

MME_LANE __m128i load8(const void* at) { return _mm_loadl_epi64(static_cast<const __m128i*>(at)); }
MME_LANE void store8(void* at, __m128i value) {
  _mm_storel_epi64(static_cast<__m128i*>(at), value);
}

// Those of sixteen bytes whose bits are set, one after the other; how many they are.
MME_LANE long put_close(__m128i bytes, int pattern, uint8_t* out) {
  const int lower = pattern & 255, upper = pattern >> 8, count = __builtin_popcount(lower);
  store8(out, _mm_shuffle_epi8(bytes, load8(kOrders.close[lower])));
  store8(out + count, _mm_shuffle_epi8(_mm_srli_si128(bytes, 8), load8(kOrders.close[upper])));
  return count + __builtin_popcount(upper);
}

MME_LANE I words(int value) { return _mm256_set1_epi16(static_cast<int16_t>(value)); }

// How far sixteen numbers are apart, at most 255: differences that saturate are more anyway.
MME_LANE I apart(I a, I b) {
  return _mm256_min_epu16(_mm256_abs_epi16(_mm256_subs_epi16(a, b)), words(255));
}

// Bits that words of 0 to 255 take, by their halves.
MME_LANE I lengths(I value) {
  const I lower = _mm256_setr_epi8(0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 0, 1, 2, 2, 3, 3,
                                   3, 3, 4, 4, 4, 4, 4, 4, 4, 4);
  const I upper = _mm256_setr_epi8(0, 5, 6, 6, 7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 8, 8, 0, 5, 6, 6, 7, 7,
                                   7, 7, 8, 8, 8, 8, 8, 8, 8, 8);
  return _mm256_max_epi16(_mm256_shuffle_epi8(lower, _mm256_and_si256(value, words(15))),
                          _mm256_shuffle_epi8(upper, _mm256_srli_epi16(value, 4)));
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
#endif
