// The other way round of rans.h: the symbols of a row become its bytes, from the last to the first.
#pragma once

#include "rans.h"

namespace mme {
namespace MME_ISA {
namespace {

// Context of no symbol, which leaves its state as it is.
constexpr int kNone = kContexts;

// Entries [kNone + 1, 256] of eleven bits of a symbol's frequency and ten of the sum of those
// before it. Those of symbols that a table does not hold are the escape's, and marked as that one
// is.
constexpr uint32_t kEscaped = 1u << 31;
constexpr long kEntries = (kNone + 1) * 256;

inline bool fill_entries(const uint16_t* frequencies, uint32_t* entries) {
  for (int context = 0; context < kContexts; ++context) {
    const uint16_t* counts = frequencies + context * 256;
    uint32_t* out = entries + context * 256;
    uint32_t below = 0;
    for (int symbol = 0; symbol < 256; ++symbol) {
      out[symbol] = counts[symbol] | below << 11;
      below += counts[symbol];
      if (below > kTotal) return false;
    }
    if (below != 0 && below != kTotal) return false;
    // What changes is never escaped: what is not in its tables has the frequency 0.
    const bool escapes = context < kChanges || context >= kValues;
    const uint32_t escape = kEscaped | (escapes ? out[kEscape] : 0);
    for (int symbol = 0; symbol < 256; ++symbol) {
      if (!counts[symbol] || (escapes && symbol == kEscape)) out[symbol] = escape;
    }
  }
  for (long i = kNone * 256; i < kEntries; ++i) entries[i] = kTotal;
  return true;
}

#if defined(MME_SIMD)

// For each pattern of lanes that give a word away, which words those are, at the end of eight.
struct Words {
  alignas(64) uint8_t last[256][16];
  constexpr Words() : last() {
    for (int pattern = 0; pattern < 256; ++pattern) {
      int next = 16;
      for (int i = 7; i >= 0; --i) {
        if (!(pattern >> i & 1)) continue;
        last[pattern][--next] = static_cast<uint8_t>(2 * i + 1);
        last[pattern][--next] = static_cast<uint8_t>(2 * i);
      }
      while (next > 0) last[pattern][--next] = 0x80;
    }
  }
};
constexpr Words kWords;

// x / f of 0 <= x < 2^31 and 1 <= f <= 1024: in double it is rounded by far less than the 1/f that
// it lies below the next whole number at least.
MME_LANE I divided(I x, I f) {
  const auto four = [](__m128i a, __m128i b) {
    return _mm256_cvttpd_epi32(_mm256_div_pd(_mm256_cvtepi32_pd(a), _mm256_cvtepi32_pd(b)));
  };
  const __m128i low = four(_mm256_castsi256_si128(x), _mm256_castsi256_si128(f));
  const __m128i high = four(_mm256_extracti128_si256(x, 1), _mm256_extracti128_si256(f, 1));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Steps of entries, from the last to the first; their words lie before `at`, where sixteen bytes
// more may be written. Gives where they begin.
inline uint8_t* put_steps(const uint32_t* entries, long steps, int32_t* state, uint8_t* at) {
  I x = set(kLow);
  for (const uint32_t* entry = entries + kLanes * steps; entry != entries;) {
    entry -= kLanes;
    const I two = load(entry), f = _mm256_and_si256(two, set(0x7ff));
    const I below = _mm256_srli_epi32(two, 11);
    // Where no word is given away.
    const I fits = _mm256_cmpgt_epi32(f, _mm256_srli_epi32(x, 31 - kBits));
    const int pattern = 255 & ~_mm256_movemask_ps(_mm256_castsi256_ps(fits));
    const I low = _mm256_and_si256(x, set(0xffff));
    const __m128i eight =
        _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    const __m128i order = _mm_load_si128(reinterpret_cast<const __m128i*>(kWords.last[pattern]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at - 16), _mm_shuffle_epi8(eight, order));
    at -= 2 * __builtin_popcount(pattern);
    const I rest = _mm256_blendv_epi8(_mm256_srli_epi32(x, 16), x, fits);
    const I whole = divided(rest, f);
    x = _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(whole, kBits), below),
                         _mm256_sub_epi32(rest, _mm256_mullo_epi32(whole, f)));
  }
  store(state, x);
  return at;
}

#else

inline uint8_t* put_steps(const uint32_t* entries, long steps, int32_t* state, uint8_t* at) {
  uint32_t x[kLanes];
  for (uint32_t& one : x) one = kLow;
  for (long step = steps - 1; step >= 0; --step) {
    for (int i = kLanes - 1; i >= 0; --i) {
      const uint32_t entry = entries[kLanes * step + i], f = entry & 0x7ff;
      if (x[i] >> (31 - kBits) >= f) {
        *--at = static_cast<uint8_t>(x[i] >> 8);
        *--at = static_cast<uint8_t>(x[i]);
        x[i] >>= 16;
      }
      const uint32_t whole = x[i] / f;
      x[i] = (whole << kBits) + (x[i] - whole * f) + (entry >> 11);
    }
  }
  std::memcpy(state, x, sizeof x);
  return at;
}

#endif

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
