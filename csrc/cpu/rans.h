// rANS by static tables, eight states a row (mme_targets/store_rans.py has the equations).
#pragma once

#include "row_lanes.h"

#include "../common/track_rows.h"

#include <cstring>

namespace mme {
namespace MME_ISA {
namespace {

constexpr int kBits = 10, kTotal = 1 << kBits, kLanes = 8;
constexpr int32_t kLow = 1 << 15;

// What one row's coding reads.
struct Coder {
  alignas(32) int32_t state[kLanes];
  const uint8_t *at, *end;  // words that are left
  const uint8_t* escapes;   // the next one lies before it
  const uint8_t* begin;     // of words
  uint8_t tail[64];         // the last words, so that eight can be read always
  bool marked, over;

  void open(const uint8_t* row, const uint8_t* row_end) {
    over = row_end - row < 4 * kLanes;
    std::memset(state, 0, sizeof state);
    if (!over) std::memcpy(state, row, sizeof state);
    marked = state[0] < 0;
    state[0] &= 0x7fffffff;
    at = begin = over ? row_end : row + 4 * kLanes;
    end = escapes = row_end;
    if (end - at < 2 * kLanes) to_tail();
  }

  void to_tail() {
    const long left = at < end ? end - at : 0;
    std::memset(tail, 0, sizeof tail);
    std::memcpy(tail, at, left);
    at = tail, end = tail + left;
  }

  void take(int words) {
    at += 2 * words;
    if (__builtin_expect(end - at < 2 * kLanes, 0)) {
      if (at > end) over = true, at = end;
      if (end < tail || end > tail + sizeof tail) to_tail();
    }
  }

  int16_t escape() {
    if (escapes - begin < 2) {
      over = true;
      return 0;
    }
    escapes -= 2;
    return static_cast<int16_t>(escapes[0] | escapes[1] << 8);
  }
};

// Entries of eight bits of symbol, twelve of its frequency, and its slot less the ones before it.
inline bool fill(const uint16_t* frequencies, uint32_t* table) {
  for (int context = 0; context < kContexts; ++context) {
    uint32_t* entry = table + context * kTotal;
    const uint32_t* last = entry + kTotal;
    for (uint32_t symbol = 0; symbol < 256; ++symbol) {
      const uint32_t count = frequencies[context * 256 + symbol];
      if (count > last - entry) return false;
      for (uint32_t i = 0; i < count; ++i) entry[i] = symbol | count << 8 | i << 20;
      entry += count;
    }
    if (entry != last && entry != last - kTotal) return false;
    if (entry != last) std::memset(entry, 0, kTotal * sizeof *entry);
  }
  return true;
}

#if defined(MME_SIMD)

#if !defined(__AVX512VL__)
// For each pattern of lanes that take a word, which of eight words each takes.
struct Expansion {
  alignas(32) int32_t lane[256][8];
  constexpr Expansion() : lane() {
    for (int pattern = 0; pattern < 256; ++pattern) {
      int next = 0;
      for (int i = 0; i < 8; ++i) lane[pattern][i] = pattern >> i & 1 ? next++ : 0;
    }
  }
};
constexpr Expansion kExpansion;
#endif

// Eight entries of a table, each read for itself: less than a gather takes.
MME_LANE I looked_up(const int* table, I place) {
  alignas(32) uint32_t at[kLanes];
  _mm256_store_si256(reinterpret_cast<I*>(at), place);
  const auto four = [&](int i) {
    const __m128i a = _mm_insert_epi32(_mm_cvtsi32_si128(table[at[i]]), table[at[i + 1]], 1);
    const __m128i b = _mm_insert_epi32(_mm_cvtsi32_si128(table[at[i + 2]]), table[at[i + 3]], 1);
    return _mm_unpacklo_epi64(a, b);
  };
  return _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(4), 1);
}

// One step: `left` symbols, if they are less than eight.
MME_LANE void step(const uint32_t* table, Coder& coder, const uint8_t* contexts, uint8_t* out,
                   long left) {
  const I state = _mm256_load_si256(reinterpret_cast<const I*>(coder.state));
  const I slot = _mm256_and_si256(state, set(kTotal - 1));
  const I place = _mm256_or_si256(_mm256_slli_epi32(bytes_at(contexts), kBits), slot);
  const I entry = looked_up(reinterpret_cast<const int*>(table), place);
  const I count = _mm256_and_si256(_mm256_srli_epi32(entry, 8), set(0xfff));
  I moved = _mm256_add_epi32(_mm256_mullo_epi32(count, _mm256_srli_epi32(state, kBits)),
                             _mm256_srli_epi32(entry, 20));
  I symbol = _mm256_and_si256(entry, set(0xff));
  const I words =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(coder.at)));
#if defined(__AVX512VL__)
  __mmask8 low = _mm256_cmplt_epi32_mask(moved, set(kLow));
  if (left < kLanes) {
    const __mmask8 used = static_cast<__mmask8>((1 << left) - 1);
    low &= used;
    symbol = _mm256_maskz_mov_epi32(used, symbol);
    moved = _mm256_mask_mov_epi32(state, used, moved);
  }
  const int pattern = low;
  moved = _mm256_mask_or_epi32(moved, low, _mm256_slli_epi32(moved, 16),
                               _mm256_maskz_expand_epi32(low, words));
#else
  I low = _mm256_cmpgt_epi32(set(kLow), moved);
  if (left < kLanes) {
    const I used = _mm256_cmpgt_epi32(set(static_cast<int>(left)), iota());
    low = _mm256_and_si256(low, used);
    symbol = _mm256_and_si256(symbol, used);
    moved = _mm256_blendv_epi8(state, moved, used);
  }
  const int pattern = _mm256_movemask_ps(_mm256_castsi256_ps(low));
  const I taken = _mm256_permutevar8x32_epi32(words, load(kExpansion.lane[pattern]));
  moved = _mm256_blendv_epi8(moved, _mm256_or_si256(_mm256_slli_epi32(moved, 16), taken), low);
#endif
  _mm256_store_si256(reinterpret_cast<I*>(coder.state), moved);
  coder.take(__builtin_popcount(pattern));
  put_bytes(symbol, out);
}

#else

inline void step(const uint32_t* table, Coder& coder, const uint8_t* contexts, uint8_t* out,
                 long left) {
  int words = 0;
  for (long i = 0; i < kLanes; ++i) {
    out[i] = 0;
    if (i >= left) continue;
    const uint32_t state = static_cast<uint32_t>(coder.state[i]);
    const uint32_t entry = table[contexts[i] << kBits | (state & (kTotal - 1))];
    uint32_t moved = (entry >> 8 & 0xfff) * (state >> kBits) + (entry >> 20);
    if (moved < static_cast<uint32_t>(kLow)) {
      const uint8_t* word = coder.at + 2 * words++;
      moved = moved << 16 | word[0] | word[1] << 8;
    }
    coder.state[i] = static_cast<int32_t>(moved);
    out[i] = static_cast<uint8_t>(entry);
  }
  coder.take(words);
}

#endif

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
