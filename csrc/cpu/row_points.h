// What is known of the points of a row's plane before it is decoded.
//
// Lanes hold eight points as they lie, x and y of sixteen bits each. The symbols of those that may
// change lie close together: a table moves eight bytes there and back.
#pragma once

#include "row_lanes.h"
#include "row_wide.h"

#include "../common/track_rows.h"

#include <cstring>

namespace mme {
namespace MME_ISA {
namespace {

constexpr long kGroup = 8;
constexpr int32_t kFarthest = 32000;
// Bytes that may be read or written past a list's end.
constexpr long kPast = 64;

// What is known of one row, in memory that others hold. What lies around `first` may be read; past
// the ends of `now` and the trails lie zeros.
struct Row {
  int16_t *first, *now;  // [Gy, Gx, 2], plane 0 and the one before
  int16_t* trail[2];     // where the tracks of even and odd planes have come to
  uint8_t* slopes;       // [Gy, Gx], of plane 0
  bool marked;           // all points may change
};

// The points of a plane that may change.
struct Candidates {
  uint8_t* contexts;   // of each
  uint8_t* may;        // of each eight points, which may
  int16_t* predicted;  // [Gy, Gx, 2], of them
  long count;
};

class Points {
 protected:
  explicit Points(const RowLayout& layout)
      : layout_(layout),
        points_(layout.gy * layout.gx),
        around_((2 * layout.gx + 2 * kGroup) / 32 * 32 + 32),
        field_((2 * points_ + 31) / 32 * 32 + 2 * around_),
        wide_(layout.gx > 512 || layout.gy > 512) {}

  // Column and row of each point, in memory for a field.
  void set_origins(int16_t* origins) {
    origins_ = origins;
    clear_past(origins);
    for (long j = 0, i = 0; j < layout_.gy; ++j) {
      for (long k = 0; k < layout_.gx; ++k, ++i) {
        origins[2 * i] = static_cast<int16_t>(64 * k);
        origins[2 * i + 1] = static_cast<int16_t>(64 * j);
      }
    }
  }

  // Zeros past a plane's end, where lanes read.
  void clear_past(int16_t* plane) const {
    std::memset(plane + 2 * points_, 0, 4 * kGroup * sizeof(int16_t));
  }

  // Of eight points; an even number, as two may be listed at once.
  long groups() const { return (points_ + 2 * kGroup - 1) / (2 * kGroup) * 2; }

  // What loops over a line run to, so that nothing is left over for single numbers.
  static long whole_lanes(long width) { return (width + 31) / 32 * 32; }

  // Contexts of a line's residuals by the weights above, which have two of nothing on both sides.
  void residual_contexts(const uint8_t* __restrict weights, uint8_t* __restrict contexts) const {
    for (long j = 0; j < whole_lanes(2 * layout_.gx); ++j) {
      contexts[j] = residual_context(weights[j], weights[j + 2], weights[j - 2]);
    }
  }

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
      one(i++);
      for (; i + kGroup + 1 <= layout_.gx; i += kGroup) {
        const I here = load(line + 2 * i);
        const I sums = _mm256_add_epi16(
            _mm256_add_epi16(apart(here, load(above + 2 * i)), apart(here, load(below + 2 * i))),
            _mm256_add_epi16(apart(here, load(line + 2 * i - 2)),
                             apart(here, load(line + 2 * i + 2))));
        put_bytes(lengths(vmin(_mm256_madd_epi16(sums, words(1)), set(255))), out + i);
      }
#endif
      for (; i < layout_.gx; ++i) one(i);
    }
  }

  // Where a plane's tracks have come to, from the row before; the points that may change, what is
  // predicted for them, and their contexts.
  void list_points(const Row& row, const Row& earlier, Candidates& list, long plane) const {
    list.count = 0;
#if defined(MME_SIMD)
    if (!wide_) {
      if (const int shift = layout_.shift()) {
#if defined(__AVX512BW__)
        list_sixteens(row, earlier, list, plane, StandingWide(layout_, plane, shift));
#else
        list_groups(row, earlier, list, plane, Halves(layout_, plane, shift));
#endif
      } else {
        list_groups(row, earlier, list, plane, Wholes(layout_, plane));
      }
      return;
    }
#endif
    const int16_t *before = earlier.trail[(plane - 1) & 1], *steps = earlier.now;
    const int16_t* there = row.trail[(plane - 1) & 1];
    int16_t* came = row.trail[plane & 1];
    const int32_t slack = static_cast<int32_t>(plane * layout_.scale) >> 1;
    const int32_t slack_there = static_cast<int32_t>((plane - 1) * layout_.scale) >> 1;
    const auto first = [&](int32_t x, int32_t y) {
      const int16_t* at = row.first + 2 * (y * layout_.gx + x);
      return Point{at[0], at[1]};
    };
    for (long i = 0; i < points_; ++i) {
      bool stands = !row.marked;
      int32_t moved = 0, off = 0;
      for (long j = 2 * i; j < 2 * i + 2; ++j) {
        came[j] = moved_on(before[j], steps[j]);
        stands = stands && same_pixel(came[j], slack, there[j], slack_there, layout_);
        const int32_t far = magnitude(came[j] - there[j]);
        moved = far > moved ? far : moved;
      }
      if (i % kGroup == 0) list.may[i / kGroup] = 0;
      if (stands) continue;
      const Point b = bilinear(first, static_cast<int32_t>(i % layout_.gx),
                               static_cast<int32_t>(i / layout_.gx),
                               Point{came[2 * i], came[2 * i + 1]}, layout_);
      list.predicted[2 * i] = static_cast<int16_t>(b.x);
      list.predicted[2 * i + 1] = static_cast<int16_t>(b.y);
      off = magnitude(b.x - row.now[2 * i]) + magnitude(b.y - row.now[2 * i + 1]);
      const int score = 2 * length8(off) + length8(moved) + row.slopes[i];
      const int most = kValues - kChanges - 1;
      list.contexts[list.count++] = static_cast<uint8_t>(kChanges + (score < most ? score : most));
      list.may[i / kGroup] = static_cast<uint8_t>(list.may[i / kGroup] | 1 << i % kGroup);
    }
  }

  // Contexts of the values of those of eight points' components that change; how many they are.
  long value_contexts(const Row& row, const Candidates& list, long group, int changed,
                      uint8_t* out) const {
    const int16_t* predicted = list.predicted + 2 * kGroup * group;
    const int16_t* now = row.now + 2 * kGroup * group;
#if defined(MME_SIMD)
    const I by = _mm256_add_epi16(lengths(apart(load(predicted), load(now))), words(kValues));
    return put_close(_mm_packus_epi16(_mm256_castsi256_si128(by), _mm256_extracti128_si256(by, 1)),
                     changed, out);
#else
    long count = 0;
    for (; changed; changed &= changed - 1) {
      const int j = __builtin_ctz(changed);
      out[count++] = static_cast<uint8_t>(kValues + length8(magnitude(predicted[j] - now[j])));
    }
    return count;
#endif
  }

  // Where a track has come to after another step.
  static int16_t moved_on(int16_t came, int16_t step) {
    const int32_t sum = came + step;
    return static_cast<int16_t>(sum < -kFarthest ? -kFarthest : sum > kFarthest ? kFarthest : sum);
  }

#if defined(MME_SIMD)
  MME_LANE static I moved_on(I came, I step) {
    const I sum = _mm256_adds_epi16(came, step);
    return _mm256_max_epi16(_mm256_min_epi16(sum, words(kFarthest)), words(-kFarthest));
  }

 private:
  // Which of eight points certainly stand on one pixel in both tracks: steps are a power of two of
  // a pixel, and sixteen bits do.
  struct Halves {
    Halves(const RowLayout& layout, long plane, int shift) : by(_mm_cvtsi32_si128(shift)) {
      const int32_t slack[2] = {static_cast<int32_t>(plane * layout.scale) >> 1,
                                static_cast<int32_t>((plane - 1) * layout.scale) >> 1};
      for (int k = 0; k < 4; ++k) {
        const int32_t off = k % 2 ? slack[k / 2] : -slack[k / 2];
        offsets[k] = words((layout.half + off) >> (16 - shift));
      }
    }
    MME_LANE int operator()(I came, I there) const {
      const auto pixel = [&](I moves, int k) {
        return _mm256_sra_epi16(_mm256_add_epi16(moves, offsets[k]), by);
      };
      const I one = pixel(came, 0);
      const I same = _mm256_and_si256(_mm256_cmpeq_epi16(one, pixel(came, 1)),
                                      _mm256_and_si256(_mm256_cmpeq_epi16(one, pixel(there, 2)),
                                                       _mm256_cmpeq_epi16(one, pixel(there, 3))));
      return _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(same, set(-1))));
    }
    I offsets[4];
    __m128i by;
  };

  // The same, of any step.
  struct Wholes {
    Wholes(const RowLayout& layout, long plane) : layout(layout), plane(plane) {}
    int operator()(I came, I there) const {
      alignas(32) int16_t a[2 * kGroup], b[2 * kGroup];
      store(a, came), store(b, there);
      const int32_t slack = static_cast<int32_t>(plane * layout.scale) >> 1;
      const int32_t slack_there = static_cast<int32_t>((plane - 1) * layout.scale) >> 1;
      int stand = 0;
      for (int i = 0; i < kGroup; ++i) {
        const bool stands = same_pixel(a[2 * i], slack, b[2 * i], slack_there, layout) &&
                            same_pixel(a[2 * i + 1], slack, b[2 * i + 1], slack_there, layout);
        stand |= stands << i;
      }
      return stand;
    }
    const RowLayout& layout;
    long plane;
  };

#if defined(__AVX512BW__)
  // `list_groups` by twos.
  void list_sixteens(const Row& row, const Row& earlier, Candidates& list, long plane,
                     const StandingWide standing) const {
    const int16_t *before = earlier.trail[(plane - 1) & 1], *steps = earlier.now;
    const int16_t* there = row.trail[(plane - 1) & 1];
    int16_t* came_to = row.trail[plane & 1];
    const int gx = static_cast<int>(layout_.gx);
    const W cells = words_wide(layout_.cells), whole = words_wide(layout_.cells >= 32768 ? -1 : 0);
    const W most = _mm512_set1_epi32(64 * (gx - 1) | static_cast<int>(layout_.gy - 1) << 22);
    const W farthest = words_wide(kFarthest), least = words_wide(-kFarthest);
    const W halves = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    const unsigned all = row.marked ? 0xffff : 0;
    uint8_t* contexts = list.contexts;
    for (long i = 0; i < points_; i += kWide) {
      const W sum = _mm512_adds_epi16(load_wide(before + 2 * i), load_wide(steps + 2 * i));
      const W came = _mm512_max_epi16(_mm512_min_epi16(sum, farthest), least);
      const W was = load_wide(there + 2 * i);
      _mm512_storeu_si512(came_to + 2 * i, came);
      unsigned may = all | (0xffff & ~static_cast<unsigned>(standing(came, was)));
      if (points_ - i < kWide) may &= (1u << (points_ - i)) - 1;
      const uint16_t both = static_cast<uint16_t>(may);
      std::memcpy(list.may + i / kGroup, &both, sizeof both);
      if (!may) continue;

      const W origin = load_wide(origins_ + 2 * i);
      const W far =
          _mm512_add_epi16(_mm512_mulhi_epi16(came, cells), _mm512_and_si512(came, whole));
      const W to = _mm512_min_epi16(
          _mm512_max_epi16(_mm512_adds_epi16(origin, far), _mm512_setzero_si512()), most);
      const W guess = predicted_wide(row.first + 2 * i, _mm512_sub_epi16(to, origin), gx);
      _mm512_storeu_si512(list.predicted + 2 * i, guess);

      const W off = _mm512_madd_epi16(apart_wide(guess, load_wide(row.now + 2 * i)), words_wide(1));
      const W by = apart_wide(came, was);
      const W moved = _mm512_and_si512(_mm512_max_epi16(by, _mm512_slli_epi32(by, 16)), halves);
      const W sizes =
          lengths_wide(_mm512_or_si512(_mm512_min_epi32(off, _mm512_set1_epi32(255)), moved));
      const W slopes =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row.slopes + i)));
      const W score =
          _mm512_add_epi32(_mm512_madd_epi16(sizes, _mm512_set1_epi32(1 << 16 | 2)), slopes);
      const W context =
          _mm512_add_epi32(_mm512_min_epi32(score, _mm512_set1_epi32(kValues - kChanges - 1)),
                           _mm512_set1_epi32(kChanges));
      const W close = _mm512_maskz_compress_epi32(static_cast<__mmask16>(may), context);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(contexts), _mm512_cvtepi32_epi8(close));
      contexts += __builtin_popcount(may);
    }
    list.count = contexts - list.contexts;
  }
#endif

  template <class Standing>
  void list_groups(const Row& row, const Row& earlier, Candidates& list, long plane,
                   const Standing standing) const {
    const int16_t *before = earlier.trail[(plane - 1) & 1], *steps = earlier.now;
    const int16_t* there = row.trail[(plane - 1) & 1];
    int16_t* came_to = row.trail[plane & 1];
    const int gx = static_cast<int>(layout_.gx);
    // A product of sixteen bits by `cells`, which may have seventeen: the upper half.
    const I cells = words(layout_.cells), whole = words(layout_.cells >= 32768 ? -1 : 0);
    const I most = set(64 * (gx - 1) | static_cast<int>(layout_.gy - 1) << 22);
    const bool marked = row.marked;
    uint8_t* contexts = list.contexts;
    for (long i = 0; i < points_; i += kGroup) {
      const I came = moved_on(load(before + 2 * i), load(steps + 2 * i));
      const I was = load(there + 2 * i);
      store(came_to + 2 * i, came);
      int may = marked ? 255 : 255 & ~standing(came, was);
      if (points_ - i < kGroup) may &= (1 << (points_ - i)) - 1;
      list.may[i / kGroup] = static_cast<uint8_t>(may);
      if (!may) continue;

      const I origin = load(origins_ + 2 * i);
      const I far =
          _mm256_add_epi16(_mm256_mulhi_epi16(came, cells), _mm256_and_si256(came, whole));
      const I to =
          _mm256_min_epi16(_mm256_max_epi16(_mm256_adds_epi16(origin, far), words(0)), most);
      const I guess = predicted(row.first + 2 * i, _mm256_sub_epi16(to, origin), gx);
      store(list.predicted + 2 * i, guess);

      const I off = _mm256_madd_epi16(apart(guess, load(row.now + 2 * i)), words(1));
      const I by = apart(came, was);
      const I moved = _mm256_and_si256(_mm256_max_epi16(by, _mm256_slli_epi32(by, 16)),
                                       set(static_cast<int>(0xffff0000)));
      const I sizes = lengths(_mm256_or_si256(vmin(off, set(255)), moved));
      const I score =
          _mm256_add_epi32(_mm256_madd_epi16(sizes, set(1 << 16 | 2)), bytes_at(row.slopes + i));
      const I context = _mm256_add_epi32(vmin(score, set(kValues - kChanges - 1)), set(kChanges));
      const __m128i narrow =
          _mm_packus_epi32(_mm256_castsi256_si128(context), _mm256_extracti128_si256(context, 1));
      store8(contexts,
             _mm_shuffle_epi8(_mm_packus_epi16(narrow, narrow), load8(kOrders.close[may])));
      contexts += __builtin_popcount(may);
    }
    list.count = contexts - list.contexts;
  }

  // Plane 0 as far from eight points as `moved` says, in 1/64 of the grid.
  MME_LANE static I predicted(const int16_t* first, I moved, int gx) {
    const I of_x = _mm256_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1,
                                    4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
    const I of_y = _mm256_or_si256(of_x, words(0x0202));
    const I size = _mm256_abs_epi16(moved);
    I corner[4];  // the point come to, the one beside it, and those beyond them
    if (__builtin_expect(_mm256_testz_si256(size, words(static_cast<int16_t>(~63))), 1)) {
      const I left = _mm256_shuffle_epi8(moved, of_x), up = _mm256_shuffle_epi8(moved, of_y);
      const auto line = [&](const int16_t* at, I out[2]) {
        out[0] = load(at);
        out[1] = where_negative(left, load(at - 2), load(at + 2));
      };
      I above[2], below[2];
      line(first, corner);
      line(first - 2 * gx, above);
      line(first + 2 * gx, below);
      for (int k = 0; k < 2; ++k) corner[2 + k] = where_negative(up, above[k], below[k]);
    } else {
      const I sign = _mm256_sign_epi16(words(1), moved);
      const I cells = _mm256_sign_epi16(_mm256_srli_epi16(size, 6), moved);
      const I place = _mm256_add_epi32(iota(), _mm256_madd_epi16(cells, set(gx << 16 | 1)));
      const I beside = _mm256_madd_epi16(sign, set(1)),
              beyond = _mm256_madd_epi16(sign, set(gx << 16));
      const auto gather = [&](I at) {
        return _mm256_i32gather_epi32(reinterpret_cast<const int*>(first), at, 4);
      };
      const I next = _mm256_add_epi32(place, beyond);
      corner[0] = gather(place), corner[1] = gather(_mm256_add_epi32(place, beside));
      corner[2] = gather(next), corner[3] = gather(_mm256_add_epi32(next, beside));
    }
    const I share = _mm256_slli_epi16(_mm256_and_si256(size, words(63)), 9);
    const auto between = [](I a, I b, I share) {
      return _mm256_add_epi16(a, _mm256_mulhrs_epi16(_mm256_sub_epi16(b, a), share));
    };
    const I across = _mm256_shuffle_epi8(share, of_x);
    return between(between(corner[0], corner[1], across), between(corner[2], corner[3], across),
                   _mm256_shuffle_epi8(share, of_y));
  }

  MME_LANE static I where_negative(I sign, I a, I b) {
#if defined(__AVX512BW__)
    return _mm256_mask_mov_epi16(b, _mm256_movepi16_mask(sign), a);
#else
    return _mm256_blendv_epi8(b, a, _mm256_srai_epi16(sign, 15));
#endif
  }

 protected:
#endif
  const RowLayout& layout_;
  const long points_;
  const long around_, field_;  // numbers around a plane that may be read; a plane with them
  const bool wide_;
  int16_t* origins_ = nullptr;  // column and row of each point, in 1/64
};

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
