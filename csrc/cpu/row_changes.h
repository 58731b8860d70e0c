// What the symbols of a row's plane say.
#pragma once

#include "rans.h"
#include "row_points.h"

namespace mme {
namespace MME_ISA {
namespace {

// Lists of one row, of one plane.
struct Lists : Candidates {
  uint8_t* symbols;                  // of residuals; then of points that may change
  uint8_t *value_contexts, *values;  // of components that change; of residuals, the weights
  uint16_t* changed;                 // of each eight points, which components change
  int16_t* numbers;                  // a line's residuals
  long changes;
};

class Changes : protected Points {
 protected:
  using Points::Points;

  // The components that change, and the contexts of their values.
  void list_changes(const Row& row, Lists& list) const {
    const uint8_t* symbols = list.symbols;
    long count = 0;
    for (long g = 0; kGroup * g < points_; ++g) {
      const int may = list.may[g];
      list.changed[g] = 0;
      if (!may) continue;
#if defined(MME_SIMD)
      const I two =
          _mm256_cvtepu8_epi32(_mm_shuffle_epi8(load8(symbols), load8(kOrders.apart[may])));
      symbols += __builtin_popcount(may);
      // Bits 0 and 1 to where the signs of the two words are.
      const I signs = _mm256_or_si256(_mm256_slli_epi32(two, 15), _mm256_slli_epi32(two, 30));
      const int changed = _mm_movemask_epi8(
          _mm_packs_epi16(_mm256_castsi256_si128(signs), _mm256_extracti128_si256(signs, 1)));
#else
      int changed = 0;
      for (int some = may; some; some &= some - 1) {
        changed |= (*symbols++ & 3) << 2 * __builtin_ctz(some);
      }
#endif
      list.changed[g] = static_cast<uint16_t>(changed);
      count += value_contexts(row, list, g, changed, list.value_contexts + count);
    }
    list.changes = count;
  }

  // The components that change get their values.
  void change(const Row& row, const Lists& list, Coder& coder) const {
    const uint8_t* values = list.values;
#if defined(MME_SIMD)
    const bool escaped = std::memchr(values, kEscape, list.changes) != nullptr;
#endif
    for (long g = 0; kGroup * g < points_; ++g) {
      int changed = list.changed[g];
      if (!changed) continue;
      int16_t* now = row.now + 2 * kGroup * g;
      const int16_t* predicted = list.predicted + 2 * kGroup * g;
#if defined(MME_SIMD)
      if (!escaped) {
        const int lower = changed & 255, upper = changed >> 8;
        const __m128i a = _mm_shuffle_epi8(load8(values), load8(kOrders.apart[lower]));
        values += __builtin_popcount(lower);
        const __m128i b = _mm_shuffle_epi8(load8(values), load8(kOrders.apart[upper]));
        values += __builtin_popcount(upper);
        const I sum =
            _mm256_add_epi16(load(predicted), _mm256_cvtepi8_epi16(_mm_unpacklo_epi64(a, b)));
        store(now, chosen(changed, sum, load(now)));
        continue;
      }
#endif
      for (; changed; changed &= changed - 1) {
        const int j = __builtin_ctz(changed);
        int16_t number = static_cast<int8_t>(*values);
        if (*values++ == kEscape) number = coder.escape();
        now[j] = static_cast<int16_t>(predicted[j] + number);
      }
    }
  }

#if defined(MME_SIMD)
 private:
  // Words of `a` where a bit is set, of `b` where it is not.
  MME_LANE static I chosen(int bits, I a, I b) {
#if defined(__AVX512BW__)
    return _mm256_mask_mov_epi16(b, static_cast<__mmask16>(bits), a);
#else
    const I each = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192,
                                     16384, -32768);
    return _mm256_blendv_epi8(b, a, _mm256_cmpeq_epi16(_mm256_and_si256(words(bits), each), each));
#endif
  }

#endif
};

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
