// Decoding the rows of a store: rANS, and what predicts it (mme_targets/store_codec.py). A symbol
// waits for the one before it in its row, so rows go together, plane by plane.
#include "simd.h"

#include "track_rows.h"

#include <cstdlib>
#include <cstring>

namespace mme {
namespace MME_ISA {
namespace {

constexpr int kBits = 11, kTotal = 1 << kBits, kLanes = 8;
constexpr int32_t kLow = 1 << 15;
// Rows that go together.
constexpr long kTogether = 4;
// Bytes that may be read or written past a list's end.
constexpr long kPast = 32;
constexpr int32_t kFarthest = 32000;

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
bool fill(const uint16_t* frequencies, uint32_t* table) {
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

MME_LANE I load(const void* at) { return _mm256_loadu_si256(static_cast<const I*>(at)); }
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

// One step: `left` symbols, if they are less than eight.
MME_LANE void step(const uint32_t* table, Coder& coder, const uint8_t* contexts, uint8_t* out,
                   long left) {
  const I state = _mm256_load_si256(reinterpret_cast<const I*>(coder.state));
  const I slot = _mm256_and_si256(state, set(kTotal - 1));
  const I place = _mm256_or_si256(_mm256_slli_epi32(bytes_at(contexts), kBits), slot);
  const I entry = _mm256_i32gather_epi32(reinterpret_cast<const int*>(table), place, 4);
  const I count = _mm256_and_si256(_mm256_srli_epi32(entry, 8), set(0xfff));
  I moved = _mm256_add_epi32(_mm256_mullo_epi32(count, _mm256_srli_epi32(state, kBits)),
                             _mm256_srli_epi32(entry, 20));
  I symbol = _mm256_and_si256(entry, set(0xff));
  I low = _mm256_cmpgt_epi32(set(kLow), moved);
  if (left < kLanes) {
    const I used = _mm256_cmpgt_epi32(set(static_cast<int>(left)), iota());
    low = _mm256_and_si256(low, used);
    symbol = _mm256_and_si256(symbol, used);
    moved = _mm256_blendv_epi8(state, moved, used);
  }
  const int pattern = _mm256_movemask_ps(_mm256_castsi256_ps(low));
  const I words = _mm256_permutevar8x32_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(coder.at))),
      load(kExpansion.lane[pattern]));
  moved = _mm256_blendv_epi8(moved, _mm256_or_si256(_mm256_slli_epi32(moved, 16), words), low);
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

// What is known of one row while it is decoded, in memory that `Work` holds.
struct Row {
  Coder coder;
  const uint32_t* table;
  long number, depth, earlier;
  int16_t *first, *now, *came;  // [Gy, Gx, 2]
  uint8_t* slopes;              // [Gy, Gx], of plane 0
};

// Lists of one row, of one plane.
struct Lists {
  uint8_t *contexts, *symbols, *value_contexts, *values;
  int32_t *points, *predicted, *places;
  int16_t* there;
  long count, changed;
};

class Rows {
 public:
  Rows(const CodedRows& coded, const RowLayout& layout)
      : coded_(coded), layout_(layout), points_(layout.gy * layout.gx) {}
  ~Rows() { std::free(memory_); }

  bool run(int16_t* out) {
    if (!prepare()) return false;
    for (long row = 0; row < coded_.count; row += kTogether) first_planes(row, together(row));
    for (long row = 0; row < coded_.count; ++row) put(row, 0, out);
    for (long plane = 1; plane < coded_.planes; ++plane) {
      // From the last on: a row reads what the one before it was at the plane before.
      long chosen[kTogether], count = 0;
      for (long row = coded_.count - 1; row >= 0; --row) {
        if (rows_[row].depth > plane) chosen[count++] = row;
        if (count && (count == kTogether || row == 0)) {
          if (!next_planes(chosen, count, plane)) return false;
          for (long i = 0; i < count; ++i) put(chosen[i], plane, out);
          count = 0;
        }
      }
    }
    for (long row = 0; row < coded_.count; ++row) {
      if (rows_[row].coder.over) return false;
    }
    return true;
  }

 private:
  long together(long row) const {
    return coded_.count - row < kTogether ? coded_.count - row : kTogether;
  }

  // One piece of memory for all; zero, so that what lies past a list's end names a context.
  bool prepare() {
    const long field = 2 * points_ + kPast, n = coded_.count;
    long size = 0;
    const auto reserve = [&](long bytes) {
      const long at = size;
      size += (bytes + 63) / 64 * 64;
      return at;
    };
    const long tables = reserve(coded_.tables * kContexts * kTotal * sizeof(uint32_t));
    const long rows = reserve(n * sizeof(Row)), fields = reserve(3 * n * field * sizeof(int16_t));
    const long slopes = reserve(n * (points_ + kPast));
    const long narrow = reserve(4 * kTogether * field);
    const long wide = reserve(3 * kTogether * field * sizeof(int32_t));
    const long there = reserve(kTogether * field * sizeof(int16_t));
    const long origins = reserve(field * sizeof(int16_t));
    memory_ = std::calloc(size + 64, 1);
    if (!memory_) return false;
    uint8_t* base = static_cast<uint8_t*>(memory_);
    base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64;
    tables_ = reinterpret_cast<uint32_t*>(base + tables);
    for (long i = 0; i < coded_.tables; ++i) {
      if (!fill(coded_.frequencies + i * kContexts * 256, tables_ + i * kContexts * kTotal)) {
        return false;
      }
    }
    rows_ = reinterpret_cast<Row*>(base + rows);
    int16_t* of_rows = reinterpret_cast<int16_t*>(base + fields);
    for (long i = 0, before = 0; i < n; ++i) {
      Row& row = rows_[i];
      row.number = coded_.rows[i], row.depth = coded_.depth[i];
      row.table = tables_ + coded_.table[i] * kContexts * kTotal;
      row.first = of_rows + 3 * i * field, row.now = row.first + field, row.came = row.now + field;
      row.slopes = base + slopes + i * (points_ + kPast);
      row.coder.open(coded_.data + coded_.begins[i], coded_.data + coded_.ends[i]);
      while (before < i && rows_[before].number < row.number - layout_.stride) ++before;
      const bool found = rows_[before].number == row.number - layout_.stride;
      row.earlier = found ? before : -1;
      if (row.depth > 1 && (!found || rows_[before].depth < row.depth - 1)) return false;
    }
    for (long i = 0; i < kTogether; ++i) {
      Lists& list = lists_[i];
      list.contexts = base + narrow + 4 * i * field, list.symbols = list.contexts + field;
      list.value_contexts = list.symbols + field, list.values = list.value_contexts + field;
      list.points = reinterpret_cast<int32_t*>(base + wide) + 3 * i * field;
      list.predicted = list.points + field, list.places = list.predicted + field;
      list.there = reinterpret_cast<int16_t*>(base + there) + i * field;
    }
    origins_ = reinterpret_cast<int16_t*>(base + origins);
    for (long i = 0; i < points_; ++i) {
      origins_[2 * i] = static_cast<int16_t>(i % layout_.gx);
      origins_[2 * i + 1] = static_cast<int16_t>(i / layout_.gx);
    }
    return true;
  }

  // A plane to where it is wanted, if it is.
  void put(long row, long plane, int16_t* out) const {
    const long slot = coded_.slots[row * coded_.planes + plane];
    if (slot < 0) return;
    std::memcpy(out + slot * 2 * points_, rows_[row].now, 2 * points_ * sizeof(int16_t));
  }

  // Residuals of plane 0, line by line.
  void first_planes(long begin, long count) {
    const long width = 2 * layout_.gx;
    for (long i = 0; i < count; ++i) std::memset(lists_[i].values, 0, width + kPast);
    for (long y = 0; y < layout_.gy; ++y) {
      for (long i = 0; i < count; ++i) {
        const uint8_t* weights = lists_[i].values + 2;  // with two of nothing on both sides
        uint8_t* contexts = lists_[i].contexts;
        for (long j = 0; j < width; ++j) {
          contexts[j] = residual_context(weights[j], weights[j + 2], weights[j - 2]);
        }
      }
      for (long j = 0; j < width; j += kLanes) {
        for (long i = 0; i < count; ++i) {
          Row& row = rows_[begin + i];
          step(row.table, row.coder, lists_[i].contexts + j, lists_[i].symbols + j, width - j);
        }
      }
      for (long i = 0; i < count; ++i) first_line(rows_[begin + i], lists_[i], y);
    }
    for (long i = 0; i < count; ++i) {
      Row& row = rows_[begin + i];
      std::memcpy(row.now, row.first, 2 * points_ * sizeof(int16_t));
      if (row.depth > 1) slopes(row);
    }
  }

  // Numbers and weights of a line's residuals, and the line.
  void first_line(Row& row, Lists& list, long y) {
    const long width = 2 * layout_.gx;
    int16_t* residuals = list.there;
    uint8_t* weights = list.values + 2;
    int escaped = 0;
    for (long j = 0; j < width; ++j) {
      residuals[j] = static_cast<int8_t>(list.symbols[j]);
      escaped |= list.symbols[j] == kEscape;
      const int size = residuals[j] < 0 ? -residuals[j] : residuals[j];
      weights[j] = static_cast<uint8_t>(size < 63 ? size : 63);
    }
    if (escaped) {
      for (long j = 0; j < width; ++j) {
        if (list.symbols[j] != kEscape) continue;
        residuals[j] = row.coder.escape();
        const int size = magnitude(residuals[j]);
        weights[j] = static_cast<uint8_t>(size < 63 ? size : 63);
      }
    }
    int16_t* line = row.first + y * width;
    const int16_t* above = y ? line - width : nullptr;
    int32_t left[2] = {above ? above[0] : 0, above ? above[1] : 0};
    for (long j = 0; j < width; j += 2) {
      for (int c = 0; c < 2; ++c) {
        const int32_t guess = (left[c] + (above ? above[j + c] : left[c])) >> 1;
        left[c] = line[j + c] = static_cast<int16_t>(guess + residuals[j + c]);
      }
    }
  }

  // Lengths of what plane 0 differs by from its neighbours.
  void slopes(Row& row) const {
    const long gx = layout_.gx, gy = layout_.gy;
    const auto apart = [&](long a, long b) {
      return magnitude(row.first[2 * a] - row.first[2 * b]) +
             magnitude(row.first[2 * a + 1] - row.first[2 * b + 1]);
    };
    for (long y = 0; y < gy; ++y) {
      const long up = y ? gx : 0, down = y + 1 < gy ? gx : 0;
      for (long x = 0; x < gx; ++x) {
        const long i = y * gx + x, before = x ? 1 : 0, after = x + 1 < gx ? 1 : 0;
        const int32_t sum =
            apart(i, i - before) + apart(i, i + after) + apart(i, i - up) + apart(i, i + down);
        row.slopes[i] =
            static_cast<uint8_t>((sum >= 1) + (sum >= 2) + (sum >= 4) + (sum >= 8) + (sum >= 16) +
                                 (sum >= 32) + (sum >= 64) + (sum >= 128));
      }
    }
  }

  // Plane `plane` of some rows, from the last to the first.
  bool next_planes(const long* chosen, long count, long plane) {
    for (long i = 0; i < count; ++i) move(rows_[chosen[i]], lists_[i]);
    long most = 0;
    for (long i = 0; i < count; ++i) {
      list_points(rows_[chosen[i]], lists_[i], plane);
      predict(rows_[chosen[i]], lists_[i]);
      if (lists_[i].count > most) most = lists_[i].count;
    }
    for (long j = 0; j < most; j += kLanes) {
      for (long i = 0; i < count; ++i) {
        Row& row = rows_[chosen[i]];
        const long left = lists_[i].count - j;
        if (left > 0) {
          step(row.table, row.coder, lists_[i].contexts + j, lists_[i].symbols + j, left);
        }
      }
    }
    most = 0;
    for (long i = 0; i < count; ++i) {
      list_changes(rows_[chosen[i]], lists_[i]);
      if (lists_[i].changed > most) most = lists_[i].changed;
    }
    for (long j = 0; j < most; j += kLanes) {
      for (long i = 0; i < count; ++i) {
        Row& row = rows_[chosen[i]];
        const long left = lists_[i].changed - j;
        if (left > 0) {
          step(row.table, row.coder, lists_[i].value_contexts + j, lists_[i].values + j, left);
        }
      }
    }
    for (long i = 0; i < count; ++i) change(rows_[chosen[i]], lists_[i]);
    return true;
  }

  // Where the plane's tracks have come to, and those of the plane before.
  void move(Row& row, Lists& list) const {
    const Row& earlier = rows_[row.earlier];
    std::memcpy(list.there, row.came, 2 * points_ * sizeof(int16_t));
    for (long i = 0; i < 2 * points_; ++i) {
      const int32_t sum = earlier.came[i] + earlier.now[i];
      row.came[i] = static_cast<int16_t>(clamp(sum, -kFarthest, kFarthest));
    }
  }

  // The points that may change.
  void list_points(const Row& row, Lists& list, long plane) const {
    long count = 0;
    const int32_t near = static_cast<int32_t>(plane * layout_.scale) >> 1;
    const int32_t before = static_cast<int32_t>((plane - 1) * layout_.scale) >> 1;
    if (row.coder.marked) {
      for (long i = 0; i < points_; ++i) list.points[i] = static_cast<int32_t>(i);
      count = points_;
    } else {
      long i = 0;
#if defined(MME_SIMD)
      const I scale = set(layout_.scale), half = set(layout_.half);
      const auto edges = [&](const int16_t* from) {
        const I moves =
            _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        return _mm256_add_epi32(_mm256_mullo_epi32(moves, scale), half);
      };
      const auto pixel = [](I at) { return _mm256_srai_epi32(at, 16); };
      const auto standing = [&](long at) {
        const I a = edges(row.came + at), b = edges(list.there + at);
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
        const bool stands =
            same_pixel(row.came[2 * i], near, list.there[2 * i], before, layout_) &&
            same_pixel(row.came[2 * i + 1], near, list.there[2 * i + 1], before, layout_);
        if (!stands) list.points[count++] = static_cast<int32_t>(i);
      }
    }
    list.count = count;
    for (long i = count; i % kLanes; ++i) list.points[i] = 0;
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
    for (long i = 0; i < list.count; ++i) {
      const long p = list.points[i];
      const Point came{row.came[2 * p], row.came[2 * p + 1]};
      const Point b = bilinear(plane, origins_[2 * p], origins_[2 * p + 1], came, layout_);
      const int32_t off = magnitude(b.x - row.now[2 * p]) + magnitude(b.y - row.now[2 * p + 1]);
      const int32_t x = magnitude(came.x - list.there[2 * p]);
      const int32_t y = magnitude(came.y - list.there[2 * p + 1]);
      const int score = 2 * length8(off) + length8(x > y ? x : y) + row.slopes[p];
      list.contexts[i] = static_cast<uint8_t>(kChanges + clamp(score, 0, kValues - kChanges - 1));
      list.predicted[i] = static_cast<int32_t>(static_cast<uint32_t>(b.y) << 16 | (b.x & 0xffff));
    }
#endif
  }

#if defined(MME_SIMD)
  MME_LANE static I gather(const void* base, I index) {
    return _mm256_i32gather_epi32(static_cast<const int*>(base), index, 4);
  }
  MME_LANE static I low(I pair) { return _mm256_srai_epi32(_mm256_slli_epi32(pair, 16), 16); }
  MME_LANE static I high(I pair) { return _mm256_srai_epi32(pair, 16); }

  // Bits that numbers >= 0 take, at most 8: the exponent of a float says it.
  MME_LANE static I lengths(I value) {
    const I bits = _mm256_castps_si256(to_float(vmin(value, set(255))));
    return vmax(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), set(126)), set(0));
  }

  void predict8(const Row& row, Lists& list, long at) const {
    const I point = load(list.points + at), came = gather(row.came, point);
    const I origin = gather(origins_, point), cells = set(layout_.cells);
    const auto place = [&](I from, I moves, long count) {
      const I moved = _mm256_srai_epi32(_mm256_mullo_epi32(moves, cells), 16);
      const I sum = _mm256_add_epi32(_mm256_slli_epi32(from, 6), moved);
      return vmin(vmax(sum, set(0)), set(static_cast<int>(64 * (count - 1))));
    };
    const I x = place(low(origin), low(came), layout_.gx);
    const I y = place(high(origin), high(came), layout_.gy);
    const I across = _mm256_and_si256(x, set(63)), down = _mm256_and_si256(y, set(63));
    const I left = _mm256_srli_epi32(x, 6), up = _mm256_srli_epi32(y, 6), one = set(1);
    const I right = vmin(_mm256_add_epi32(left, one), set(static_cast<int>(layout_.gx - 1)));
    const I below = vmin(_mm256_add_epi32(up, one), set(static_cast<int>(layout_.gy - 1)));
    const I width = set(static_cast<int>(layout_.gx));
    const I upper_line = _mm256_mullo_epi32(up, width), lower = _mm256_mullo_epi32(below, width);
    const I a = gather(row.first, _mm256_add_epi32(upper_line, left));
    const I b = gather(row.first, _mm256_add_epi32(upper_line, right));
    const I c = gather(row.first, _mm256_add_epi32(lower, left));
    const I d = gather(row.first, _mm256_add_epi32(lower, right));
    const I weights =
        _mm256_or_si256(_mm256_sub_epi32(set(64), across), _mm256_slli_epi32(across, 16));
    // Of two points, both x's and both y's as a pair, which one instruction weighs.
    const auto both_x = [](I p, I q) {
      return _mm256_blend_epi16(p, _mm256_slli_epi32(q, 16), 0xaa);
    };
    const auto both_y = [](I p, I q) {
      return _mm256_blend_epi16(_mm256_srli_epi32(p, 16), q, 0xaa);
    };
    const auto mix = [&](I upper, I under) {
      upper = _mm256_madd_epi16(upper, weights), under = _mm256_madd_epi16(under, weights);
      const I slope = _mm256_mullo_epi32(_mm256_sub_epi32(under, upper), down);
      return _mm256_srai_epi32(
          _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(upper, 6), slope), set(2048)), 12);
    };
    const I bx = mix(both_x(a, b), both_x(c, d)), by = mix(both_y(a, b), both_y(c, d));
    const I now = gather(row.now, point), there = gather(list.there, point);
    const auto apart = [](I p, I q) { return _mm256_abs_epi32(_mm256_sub_epi32(p, q)); };
    const I off = _mm256_add_epi32(apart(bx, low(now)), apart(by, high(now)));
    const I moved = vmax(apart(low(came), low(there)), apart(high(came), high(there)));
    const I slope = _mm256_and_si256(
        _mm256_i32gather_epi32(reinterpret_cast<const int*>(row.slopes), point, 1), set(255));
    const I score = _mm256_add_epi32(_mm256_add_epi32(lengths(off), lengths(off)),
                                     _mm256_add_epi32(lengths(moved), slope));
    put_bytes(_mm256_add_epi32(vmin(score, set(kValues - kChanges - 1)), set(kChanges)),
              list.contexts + at);
    _mm256_storeu_si256(reinterpret_cast<I*>(list.predicted + at),
                        _mm256_blend_epi16(bx, _mm256_slli_epi32(by, 16), 0xaa));
  }
#endif

  // The components that change, as places in the plane, and what is predicted for them.
  void list_changes(const Row& row, Lists& list) const {
    long count = 0;
    for (long i = 0; i < list.count; i += kLanes) {
      uint64_t eight;
      std::memcpy(&eight, list.symbols + i, sizeof eight);
      if (!eight) continue;
      for (long j = i; j < i + kLanes; ++j) {
        for (int c = 0; c < 2; ++c) {
          if (!(list.symbols[j] >> c & 1)) continue;
          const int32_t place = 2 * list.points[j] + c;
          const int16_t guess = static_cast<int16_t>(list.predicted[j] >> 16 * c);
          list.places[count] = place;
          list.there[count] = guess;
          list.value_contexts[count] =
              static_cast<uint8_t>(kValues + length8(magnitude(guess - row.now[place])));
          ++count;
        }
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

  const CodedRows& coded_;
  const RowLayout& layout_;
  long points_;
  void* memory_ = nullptr;
  uint32_t* tables_ = nullptr;
  Row* rows_ = nullptr;
  Lists lists_[kTogether];
  int16_t* origins_ = nullptr;
};

bool decode_rows(const CodedRows& coded, const RowLayout& layout, int16_t* out) {
  return Rows(coded, layout).run(out);
}

}  // namespace

extern const DecodeRows kDecodeRows;
const DecodeRows kDecodeRows = decode_rows;

}  // namespace MME_ISA
}  // namespace mme
