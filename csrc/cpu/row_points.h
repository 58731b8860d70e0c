// What is known of the points of a row's plane before it is decoded.
#pragma once

#include "rans.h"

namespace mme {
namespace MME_ISA {
namespace {

// Bytes that may be read or written past a list's end.
constexpr long kPast = 32;

// What is known of one row while it is decoded, in memory that `Work` holds.
struct Row {
  Coder coder;
  const uint32_t* table;
  long number, depth, earlier;
  int16_t *first, *now;  // [Gy, Gx, 2]
  int16_t* trail[2];     // where the tracks of even and odd planes have come to
  uint8_t* slopes;       // [Gy, Gx], of plane 0
};

// Lists of one row, of one plane.
struct Lists {
  uint8_t *contexts, *symbols, *value_contexts, *values;
  int32_t *points, *predicted, *places;
  int32_t* pairs[4];  // of each point: where its track is, and that of the plane before; what that
                      // plane holds; column and row
  int16_t* there;
  long count, changed;
};

class Points {
 protected:
  explicit Points(const RowLayout& layout) : layout_(layout), points_(layout.gy * layout.gx) {}

  // Lengths of what plane 0 differs by from its neighbours.
  void slopes(const Row& row) const {
    const long width = 2 * layout_.gx;
    for (long y = 0; y < layout_.gy; ++y) {
      const int16_t* line = row.first + y * width;
      const int16_t* above = y ? line - width : line;
      const int16_t* below = y + 1 < layout_.gy ? line + width : line;
      uint8_t* out = row.slopes + y * layout_.gx;
      const auto one = [&](long i) {
        int32_t sum = 0;
        for (long j = 2 * i; j < 2 * i + 2; ++j) {
          sum += magnitude(line[j] - above[j]) + magnitude(line[j] - below[j]);
          if (i) sum += magnitude(line[j] - line[j - 2]);
          if (j + 2 < width) sum += magnitude(line[j] - line[j + 2]);
        }
        out[i] = static_cast<uint8_t>(length8(sum));
      };
      long i = 0;
#if defined(MME_SIMD)
      // Differences saturate: what is more takes eight bits anyway.
      one(i++);
      for (; i + 9 <= layout_.gx; i += 8) {
        const I here = load(line + 2 * i);
        const auto apart = [&](const int16_t* other) {
          return _mm256_min_epu16(_mm256_abs_epi16(_mm256_subs_epi16(here, load(other + 2 * i))),
                                  _mm256_set1_epi16(255));
        };
        const I sums = _mm256_add_epi16(_mm256_add_epi16(apart(above), apart(below)),
                                        _mm256_add_epi16(apart(line - 2), apart(line + 2)));
        put_bytes(lengths(_mm256_madd_epi16(sums, _mm256_set1_epi16(1))), out + i);
      }
#endif
      for (; i < layout_.gx; ++i) one(i);
    }
  }

  // The points that may change.
  void list_points(const Row& row, Lists& list, long plane) const {
    const int16_t *came = row.trail[plane & 1], *there = row.trail[(plane - 1) & 1];
    long count = 0, done = 0;
    const int32_t near = static_cast<int32_t>(plane * layout_.scale) >> 1;
    const int32_t before = static_cast<int32_t>((plane - 1) * layout_.scale) >> 1;
    if (row.coder.marked) {
      for (long i = 0; i < points_; ++i) list.points[i] = static_cast<int32_t>(i);
      count = points_;
    } else {
      long i = 0;
#if defined(MME_SIMD)
      if (const int shift = layout_.shift()) {
        // Steps are a power of two of a pixel: sixteen bits do.
        const auto edge = [&](int32_t slack) {
          return _mm256_set1_epi16(static_cast<int16_t>((layout_.half + slack) >> (16 - shift)));
        };
        const I offsets[4] = {edge(-near), edge(near), edge(-before), edge(before)};
        const __m128i by = _mm_cvtsi32_si128(shift);
        for (; i + 8 <= points_; i += 8) {
          const I a = load(came + 2 * i), b = load(there + 2 * i);
          const auto pixel = [&](I moves, int k) {
            return _mm256_sra_epi16(_mm256_add_epi16(moves, offsets[k]), by);
          };
          const I one = pixel(a, 0);
          const I same = _mm256_and_si256(_mm256_cmpeq_epi16(one, pixel(a, 1)),
                                          _mm256_and_si256(_mm256_cmpeq_epi16(one, pixel(b, 2)),
                                                           _mm256_cmpeq_epi16(one, pixel(b, 3))));
          const I both = _mm256_cmpeq_epi32(same, set(-1));
          const int may = ~_mm256_movemask_ps(_mm256_castsi256_ps(both)) & 0xff;
          if (!may) continue;
          const I order = load(kCompaction.lane[may]);
          store(list.points + count, _mm256_add_epi32(order, set(static_cast<int>(i))));
          const int16_t* const from[4] = {came, there, row.now, origins_};
          for (int k = 0; k < 4; ++k) {
            const I some = _mm256_permutevar8x32_epi32(load(from[k] + 2 * i), order);
            store(list.pairs[k] + count, some);
          }
          count += __builtin_popcount(may);
        }
      }
      done = count;
      const I scale = set(layout_.scale), half = set(layout_.half);
      const auto edges = [&](const int16_t* from) {
        const I moves =
            _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        return _mm256_add_epi32(_mm256_mullo_epi32(moves, scale), half);
      };
      const auto pixel = [](I at) { return _mm256_srai_epi32(at, 16); };
      const auto standing = [&](long at) {
        const I a = edges(came + at), b = edges(there + at);
        const I one = pixel(_mm256_sub_epi32(a, set(near)));
        const I same = _mm256_and_si256(
            _mm256_and_si256(_mm256_cmpeq_epi32(one, pixel(_mm256_add_epi32(a, set(near)))),
                             _mm256_cmpeq_epi32(one, pixel(_mm256_sub_epi32(b, set(before))))),
            _mm256_cmpeq_epi32(one, pixel(_mm256_add_epi32(b, set(before)))));
        // Both components are one 64-bit lane.
        const I both = _mm256_cmpeq_epi64(same, set(-1));
        return _mm256_movemask_pd(_mm256_castsi256_pd(both));
      };
      for (; i + 4 <= points_; i += 4) {
        unsigned may = ~standing(2 * i) & 15u;
        for (; may; may &= may - 1) {
          list.points[count++] = static_cast<int32_t>(i + __builtin_ctz(may));
        }
      }
#endif
      for (; i < points_; ++i) {
        const bool stands = same_pixel(came[2 * i], near, there[2 * i], before, layout_) &&
                            same_pixel(came[2 * i + 1], near, there[2 * i + 1], before, layout_);
        if (!stands) list.points[count++] = static_cast<int32_t>(i);
      }
    }
    for (long j = done; j < count; ++j) {
      const int16_t* const from[4] = {came, there, row.now, origins_};
      for (int k = 0; k < 4; ++k) {
        std::memcpy(list.pairs[k] + j, from[k] + 2 * list.points[j], sizeof(int32_t));
      }
    }
    list.count = count;
    for (long j = count; j % kLanes; ++j) list.points[j] = 0;
  }

  // Predictions and contexts of the points that may change.
  void predict(const Row& row, Lists& list) const {
#if defined(MME_SIMD)
    for (long i = 0; i < list.count; i += kLanes) predict8(row, list, i);
#else
    const auto plane = [&](int32_t x, int32_t y) {
      const int16_t* at = row.first + 2 * (y * layout_.gx + x);
      return Point{at[0], at[1]};
    };
    const auto pair = [&](int k, long i) {
      return Point{static_cast<int16_t>(list.pairs[k][i]), list.pairs[k][i] >> 16};
    };
    for (long i = 0; i < list.count; ++i) {
      const Point came = pair(0, i), there = pair(1, i), now = pair(2, i), at = pair(3, i);
      const Point b = bilinear(plane, at.x, at.y, came, layout_);
      const int32_t off = magnitude(b.x - now.x) + magnitude(b.y - now.y);
      const int32_t x = magnitude(came.x - there.x), y = magnitude(came.y - there.y);
      const int score = 2 * length8(off) + length8(x > y ? x : y) + row.slopes[list.points[i]];
      list.contexts[i] = static_cast<uint8_t>(kChanges + clamp(score, 0, kValues - kChanges - 1));
      list.predicted[i] = static_cast<int32_t>(static_cast<uint32_t>(b.y) << 16 | (b.x & 0xffff));
    }
#endif
  }

#if defined(MME_SIMD)
  // Four points at a time as pairs (x, y) of 32 bits: plane 0 at (x, y), in 1/64 of the grid.
  MME_LANE I bilinear4(const int16_t* first, __m128i x, __m128i y) const {
    const __m128i width = _mm_set1_epi32(static_cast<int>(layout_.gx));
    const __m128i place =
        _mm_add_epi32(_mm_mullo_epi32(_mm_srli_epi32(y, 6), width), _mm_srli_epi32(x, 6));
    // The point and the one to its right; past the last column it weighs nothing.
    const auto pair = [&](__m128i at) {
      const I found = _mm256_i32gather_epi64(reinterpret_cast<const long long*>(first), at, 4);
      const I order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1,
                                       4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
      return _mm256_shuffle_epi8(found, order);
    };
    const auto twice = [](__m128i a) {
      const I wide = _mm256_cvtepu32_epi64(a);
      return _mm256_or_si256(wide, _mm256_slli_epi64(wide, 32));
    };
    const I across = twice(_mm_and_si128(x, _mm_set1_epi32(63)));
    const I down = twice(_mm_and_si128(y, _mm_set1_epi32(63)));
    const I weights =
        _mm256_or_si256(_mm256_sub_epi32(set(64), across), _mm256_slli_epi32(across, 16));
    const I upper = _mm256_madd_epi16(pair(place), weights);
    const I lower = _mm256_madd_epi16(pair(_mm_add_epi32(place, width)), weights);
    const I slope = _mm256_mullo_epi32(_mm256_sub_epi32(lower, upper), down);
    return _mm256_srai_epi32(
        _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(upper, 6), slope), set(2048)), 12);
  }

  MME_LANE static I low(I pair) { return _mm256_srai_epi32(_mm256_slli_epi32(pair, 16), 16); }
  MME_LANE static I high(I pair) { return _mm256_srai_epi32(pair, 16); }

  void predict8(const Row& row, Lists& list, long at) const {
    const I point = load(list.points + at), came = load(list.pairs[0] + at);
    const I origin = load(list.pairs[3] + at), cells = set(layout_.cells);
    const auto place = [&](I from, I moves, long count) {
      const I moved = _mm256_srai_epi32(_mm256_mullo_epi32(moves, cells), 16);
      const I sum = _mm256_add_epi32(_mm256_slli_epi32(from, 6), moved);
      return vmin(vmax(sum, set(0)), set(static_cast<int>(64 * (count - 1))));
    };
    const I x = place(low(origin), low(came), layout_.gx);
    const I y = place(high(origin), high(came), layout_.gy);
    const I left = bilinear4(row.first, _mm256_castsi256_si128(x), _mm256_castsi256_si128(y));
    const I right =
        bilinear4(row.first, _mm256_extracti128_si256(x, 1), _mm256_extracti128_si256(y, 1));
    const auto narrow = [](I pair) {  // each 64-bit lane's two numbers, in its lower half
      return _mm256_or_si256(
          _mm256_and_si256(pair, _mm256_set1_epi64x(0xffff)),
          _mm256_and_si256(_mm256_srli_epi64(pair, 16), _mm256_set1_epi64x(0xffff0000)));
    };
    const auto joined = [](I p, I q) {
      return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(
                                          _mm256_castsi256_ps(p), _mm256_castsi256_ps(q), 0x88)),
                                      0xd8);
    };
    const I guess = joined(narrow(left), narrow(right));
    const I now = load(list.pairs[2] + at), there = load(list.pairs[1] + at);
    const auto apart = [](I p, I q) { return _mm256_abs_epi32(_mm256_sub_epi32(p, q)); };
    const I off = _mm256_add_epi32(apart(low(guess), low(now)), apart(high(guess), high(now)));
    const I moved = vmax(apart(low(came), low(there)), apart(high(came), high(there)));
    const I slope = _mm256_and_si256(
        _mm256_i32gather_epi32(reinterpret_cast<const int*>(row.slopes), point, 1), set(255));
    const I far = lengths(off);
    const I score =
        _mm256_add_epi32(_mm256_add_epi32(far, far), _mm256_add_epi32(lengths(moved), slope));
    put_bytes(_mm256_add_epi32(vmin(score, set(kValues - kChanges - 1)), set(kChanges)),
              list.contexts + at);
    store(list.predicted + at, guess);
  }
#endif

  // The components that change, as places in the plane, and what is predicted for them.
  void list_changes(const Row& row, Lists& list) const {
    long count = 0;
    for (long i = 0; i < list.count; i += kLanes) {
      uint64_t eight;  // two bits a byte
      std::memcpy(&eight, list.symbols + i, sizeof eight);
      for (; eight; eight &= eight - 1) {
        const int bit = __builtin_ctzll(eight), c = bit & 1;
        const long j = i + (bit >> 3);
        const int32_t place = 2 * list.points[j] + c;
        const int16_t guess = static_cast<int16_t>(list.predicted[j] >> 16 * c);
        list.places[count] = place;
        list.there[count] = guess;
        list.value_contexts[count] =
            static_cast<uint8_t>(kValues + length8(magnitude(guess - row.now[place])));
        ++count;
      }
    }
    list.changed = count;
  }

  void change(Row& row, Lists& list) const {
    for (long i = 0; i < list.changed; ++i) {
      int16_t number = static_cast<int8_t>(list.values[i]);
      if (list.values[i] == kEscape) number = row.coder.escape();
      row.now[list.places[i]] = static_cast<int16_t>(list.there[i] + number);
    }
  }

  const RowLayout& layout_;
  const long points_;
  int16_t* origins_ = nullptr;  // column and row of each point
};

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
