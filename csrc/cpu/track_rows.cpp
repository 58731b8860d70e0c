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

// For each pattern of lanes, those lanes, one after the other.
struct Compaction {
  alignas(32) int32_t lane[256][8];
  constexpr Compaction() : lane() {
    for (int pattern = 0; pattern < 256; ++pattern) {
      int next = 0;
      for (int i = 0; i < 8; ++i) {
        if (pattern >> i & 1) lane[pattern][next++] = i;
      }
    }
  }
};
constexpr Compaction kCompaction;

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

// Bits that numbers >= 0 take, at most 8: the exponent of a float says it.
MME_LANE I lengths(I value) {
  const I bits = _mm256_castps_si256(to_float(vmin(value, set(255))));
  return vmax(_mm256_sub_epi32(_mm256_srli_epi32(bits, 23), set(126)), set(0));
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

  // One piece of memory for all.
  bool prepare() {
    const long field = 2 * points_ + 2 * layout_.gx + kPast, n = coded_.count;
    long size = 0;
    const auto reserve = [&](long bytes) {
      const long at = size;
      size += (bytes + 63) / 64 * 64;
      return at;
    };
    const long tables = reserve(coded_.tables * kContexts * kTotal * sizeof(uint32_t));
    const long rows = reserve(n * sizeof(Row)), fields = reserve(4 * n * field * sizeof(int16_t));
    const long slopes = reserve(n * (points_ + kPast));
    const long narrow = reserve(4 * kTogether * field);
    const long wide = reserve(7 * kTogether * field * sizeof(int32_t));
    const long there = reserve(kTogether * field * sizeof(int16_t));
    const long origins = reserve(field * sizeof(int16_t));
    memory_ = std::malloc(size + 64);
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
      row.first = of_rows + 4 * i * field, row.now = row.first + field;
      row.trail[0] = row.now + field, row.trail[1] = row.trail[0] + field;
      row.slopes = base + slopes + i * (points_ + kPast);
      std::memset(row.trail[0], 0, 2 * points_ * sizeof(int16_t));
      row.coder.open(coded_.data + coded_.begins[i], coded_.data + coded_.ends[i]);
      while (before < i && rows_[before].number < row.number - layout_.stride) ++before;
      const bool found = rows_[before].number == row.number - layout_.stride;
      row.earlier = found ? before : -1;
      if (row.depth > 1 && (!found || rows_[before].depth < row.depth - 1)) return false;
    }
    // What lies past a list's end must name a context.
    std::memset(base + narrow, 0, 4 * kTogether * field);
    for (long i = 0; i < kTogether; ++i) {
      Lists& list = lists_[i];
      list.contexts = base + narrow + 4 * i * field, list.symbols = list.contexts + field;
      list.value_contexts = list.symbols + field, list.values = list.value_contexts + field;
      list.points = reinterpret_cast<int32_t*>(base + wide) + 7 * i * field;
      list.predicted = list.points + field, list.places = list.predicted + field;
      for (int k = 0; k < 4; ++k) list.pairs[k] = list.places + (k + 1) * field;
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
      for (long i = 0; i < count; ++i) residuals(rows_[begin + i], lists_[i]);
      if (count == kTogether) {
        first_lines<kTogether>(begin, y);
      } else {
        for (long i = 0; i < count; ++i) first_lines<1>(begin, y, i);
      }
    }
    for (long i = 0; i < count; ++i) {
      Row& row = rows_[begin + i];
      std::memcpy(row.now, row.first, 2 * points_ * sizeof(int16_t));
      if (row.depth > 1) slopes(row);
    }
  }

  // Numbers and weights of a line's residuals.
  void residuals(Row& row, Lists& list) const {
    const long width = 2 * layout_.gx;
    const uint8_t* __restrict symbols = list.symbols;
    int16_t* __restrict numbers = list.there;
    uint8_t* __restrict weights = list.values + 2;
    uint8_t escaped = 0;
    for (long j = 0; j < width; ++j) {
      const int8_t number = static_cast<int8_t>(symbols[j]);
      const uint8_t size = static_cast<uint8_t>(number < 0 ? -number : number);
      numbers[j] = number;
      weights[j] = size < 63 ? size : 63;
      escaped |= symbols[j] == kEscape;
    }
    if (!escaped) return;
    for (long j = 0; j < width; ++j) {
      if (symbols[j] != kEscape) continue;
      numbers[j] = row.coder.escape();
      const int32_t size = magnitude(numbers[j]);
      weights[j] = static_cast<uint8_t>(size < 63 ? size : 63);
    }
  }

  // Line y of plane 0 of N rows: each number waits for the one to its left, the rows do not wait
  // for each other.
  template <long N>
  void first_lines(long begin, long y, long skip = 0) const {
    const long width = 2 * layout_.gx;
    int16_t *line[N], left[N][2];
    const int16_t* numbers[N];
    for (long i = 0; i < N; ++i) {
      line[i] = rows_[begin + skip + i].first + y * width;
      numbers[i] = lists_[skip + i].there;
      for (int c = 0; c < 2; ++c) left[i][c] = y ? line[i][c - width] : int16_t{0};
    }
    for (long j = 0; j < width; j += 2) {
      for (long i = 0; i < N; ++i) {
        for (int c = 0; c < 2; ++c) {
          const int16_t above = y ? line[i][j + c - width] : left[i][c];
          left[i][c] = static_cast<int16_t>(((left[i][c] + above) >> 1) + numbers[i][j + c]);
          line[i][j + c] = left[i][c];
        }
      }
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

  // Plane `plane` of some rows, from the last to the first.
  bool next_planes(const long* chosen, long count, long plane) {
    for (long i = 0; i < count; ++i) move(rows_[chosen[i]], plane);
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

  // Where the plane's tracks have come to.
  void move(const Row& row, long plane) const {
    const Row& earlier = rows_[row.earlier];
    const int16_t *there = earlier.trail[(plane - 1) & 1], *steps = earlier.now;
    int16_t* __restrict came = row.trail[plane & 1];
    for (long i = 0; i < 2 * points_; ++i) {
      const int32_t sum = there[i] + steps[i];
      came[i] = static_cast<int16_t>(clamp(sum, -kFarthest, kFarthest));
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
