// Decoding the rows of a store: rANS, and what predicts it (mme_targets/store_codec.py). A symbol
// waits for the one before it in its row, so rows go together, plane by plane.
#include "simd.h"

#include "row_changes.h"
#include "row_memory.h"
#include "track_rows.h"

#include <cstring>
#include <initializer_list>

namespace mme {
namespace MME_ISA {
namespace {

// Rows that go together.
constexpr long kTogether = 8;

// What a thread keeps from one call to the next: fresh pages would take a tenth of the time.
constexpr size_t kKept = 1 << 24;
thread_local Memory memory, memory_of_rows;

// One row while it is decoded, in memory that `Rows` holds.
struct DecodedRow : Row {
  Coder coder;
  const uint32_t* table;
  long number, depth, earlier;
};

class Rows : private Changes {
 public:
  Rows(const CodedRows& coded, const RowLayout& layout, int16_t* out)
      : Changes(layout), coded_(coded), out_(out) {}
  ~Rows() { memory.keep(kKept), memory_of_rows.keep(kKept); }

  bool run() {
    if (!prepare()) return false;
    for (long begin = 0; begin < coded_.count;) {
      const long end = apart_after(begin);
      for (long row = begin; row < end; ++row) place(row, row - begin);
      for (long row = begin; row < end; row += kTogether) first_planes(row, together(row, end));
      for (long plane = 1; plane < coded_.planes; ++plane) next_planes(begin, end, plane);
      begin = end;
    }
    for (long row = 0; row < coded_.count; ++row) {
      if (rows_[row].coder.over) return false;
    }
    return true;
  }

 private:
  static long together(long row, long end) { return end - row < kTogether ? end - row : kTogether; }

  // One piece of memory for all that is known of rows, one for as many as are decoded together.
  bool prepare() {
    const long n = coded_.count;
    rows_ = reinterpret_cast<DecodedRow*>(memory_of_rows.get(n * sizeof(DecodedRow)));
    if (!rows_ || !link()) return false;
    long most = 0;
    for (long begin = 0, end; begin < n; begin = end) {
      end = apart_after(begin);
      most = end - begin > most ? end - begin : most;
    }
    Parts parts;
    const long tables = parts.reserve(coded_.tables * kContexts * kTotal * sizeof(uint32_t));
    const long groups = this->groups();
    const long fields = parts.reserve(4 * most * field_ * sizeof(int16_t));
    const long slopes = parts.reserve(most * (points_ + kPast));
    const long narrow = parts.reserve(4 * kTogether * field_);
    const long wide = parts.reserve(2 * kTogether * field_ * sizeof(int16_t));
    const long patterns = parts.reserve(3 * kTogether * groups);
    const long origins = parts.reserve(field_ * sizeof(int16_t));
    const long lines = parts.reserve(2 * (layout_.gx + kGroup) * kTogether * sizeof(int16_t));
    uint8_t* base = memory.get(parts.size);
    if (!base) return false;
    tables_ = reinterpret_cast<uint32_t*>(base + tables);
    for (long i = 0; i < coded_.tables; ++i) {
      if (!fill(coded_.frequencies + i * kContexts * 256, tables_ + i * kContexts * kTotal)) {
        return false;
      }
    }
    fields_ = reinterpret_cast<int16_t*>(base + fields) + around_;
    slopes_ = base + slopes;
    // What lies past a list's end must name a context.
    std::memset(base + narrow, 0, 4 * kTogether * field_);
    for (long i = 0; i < kTogether; ++i) {
      Lists& list = lists_[i];
      list.contexts = base + narrow + 4 * i * field_, list.symbols = list.contexts + field_;
      list.value_contexts = list.symbols + field_, list.values = list.value_contexts + field_;
      list.predicted = reinterpret_cast<int16_t*>(base + wide) + 2 * i * field_;
      list.numbers = list.predicted + field_;
      list.changed = reinterpret_cast<uint16_t*>(base + patterns) + i * groups;
      list.may = base + patterns + 2 * kTogether * groups + i * groups;
    }
    set_origins(reinterpret_cast<int16_t*>(base + origins));
    lines_ = reinterpret_cast<int16_t*>(base + lines);
    return true;
  }

  // Which row each needs; false if it is not there.
  bool link() {
    for (long i = 0, before = 0; i < coded_.count; ++i) {
      DecodedRow& row = rows_[i];
      row.number = coded_.rows[i], row.depth = coded_.depth[i];
      while (before < i && rows_[before].number < row.number - layout_.stride) ++before;
      const bool found = rows_[before].number == row.number - layout_.stride;
      row.earlier = found ? before : -1;
      if (row.depth > 1 && (!found || rows_[before].depth < row.depth - 1)) return false;
    }
    return true;
  }

  // The end of some rows that need none before them: what they take stays in the cache.
  long apart_after(long begin) const {
    long end = begin, needed = begin;
    while (end < coded_.count && (end < needed || end - begin < 2 * kTogether)) {
      // Rows up to the last one that needs this one.
      const int64_t reach = rows_[end].number + layout_.stride;
      long last = end;
      while (last + 1 < coded_.count && rows_[last + 1].number <= reach) ++last;
      if (rows_[last].number == reach && rows_[last].depth > 1 && last + 1 > needed) {
        needed = last + 1;
      }
      ++end;
    }
    return end;
  }

  // Gives a row its memory.
  void place(long i, long slot) {
    DecodedRow& row = rows_[i];
    row.table = tables_ + coded_.table[i] * kContexts * kTotal;
    row.first = fields_ + 4 * slot * field_, row.now = row.first + field_;
    row.trail[0] = row.now + field_, row.trail[1] = row.trail[0] + field_;
    row.slopes = slopes_ + slot * (points_ + kPast);
    std::memset(row.trail[0], 0, 2 * points_ * sizeof(int16_t));
    for (int16_t* some : {row.now, row.trail[0], row.trail[1]}) {
      clear_past(some);
    }
    row.coder.open(coded_.data + coded_.begins[i], coded_.data + coded_.ends[i]);
    row.marked = row.coder.marked;
  }

  // A plane to where it is wanted, if it is.
  void put(long row, long plane, const int16_t* numbers) const {
    const long slot = coded_.slots[row * coded_.planes + plane];
    if (slot < 0) return;
    std::memcpy(out_ + slot * 2 * points_, numbers, 2 * points_ * sizeof(int16_t));
  }

  // Residuals of plane 0, line by line.
  void first_planes(long begin, long count) {
    const long width = 2 * layout_.gx;
    for (long i = 0; i < count; ++i) std::memset(lists_[i].values, 0, width + kPast);
    for (long y = 0; y < layout_.gy; ++y) {
      for (long i = 0; i < count; ++i) {
        residual_contexts(lists_[i].values + 2, lists_[i].contexts);
      }
      for (long j = 0; j < width; j += kLanes) {
        for (long i = 0; i < count; ++i) {
          DecodedRow& row = rows_[begin + i];
          step(row.table, row.coder, lists_[i].contexts + j, lists_[i].symbols + j, width - j);
        }
      }
      for (long i = 0; i < count; ++i) residuals(rows_[begin + i], lists_[i]);
      first_line(begin, count, y);
    }
    for (long i = 0; i < count; ++i) {
      DecodedRow& row = rows_[begin + i];
      put(begin + i, 0, row.first);
      std::memcpy(row.now, row.first, 2 * points_ * sizeof(int16_t));
      if (row.depth > 1) slopes(row);
    }
  }

  // Numbers and weights of a line's residuals.
  void residuals(DecodedRow& row, Lists& list) const {
    const long width = 2 * layout_.gx;
    const uint8_t* __restrict symbols = list.symbols;
    int16_t* __restrict numbers = list.numbers;
    uint8_t* __restrict weights = list.values + 2;
    uint8_t escaped = 0;
    for (long j = 0; j < whole_lanes(width); ++j) {
      const int8_t number = static_cast<int8_t>(symbols[j]);
      const uint8_t size = static_cast<uint8_t>(number < 0 ? -number : number);
      numbers[j] = number;
      weights[j] = size < 63 ? size : 63;
      escaped |= symbols[j] == kEscape;
    }
    weights[width] = weights[width + 1] = 0;
    if (!escaped) return;
    for (long j = 0; j < width; ++j) {
      if (symbols[j] != kEscape) continue;
      numbers[j] = row.coder.escape();
      const int32_t size = magnitude(numbers[j]);
      weights[j] = static_cast<uint8_t>(size < 63 ? size : 63);
    }
  }

  // Line y of plane 0 of some rows: each number waits for the one to its left, the rows do not wait
  // for each other.
  void first_line(long begin, long count, long y) const {
    const long width = 2 * layout_.gx;
#if defined(MME_SIMD)
    // Columns of eight rows, x and y of each, as they lie one after the other in `lines_`.
    I left = set(0);
    for (long j = 0; j < width; j += 2 * kTogether) {
      F eight[kTogether];
      for (long i = 0; i < kTogether; ++i) {
        eight[i] = _mm256_castsi256_ps(load(lists_[i < count ? i : 0].numbers + j));
      }
      transpose(eight);
      int16_t* line = lines_ + kTogether * j;
      for (long i = 0; i < kTogether; ++i, line += 2 * kTogether) {
        const I above = y ? load(line) : left;
        if (j + i == 0) left = above;
        left = _mm256_add_epi16(_mm256_srai_epi16(_mm256_add_epi16(left, above), 1),
                                _mm256_castps_si256(eight[i]));
        store(line, left);
        eight[i] = _mm256_castsi256_ps(left);
      }
      transpose(eight);
      // What goes past the line's end is the next one's, or lies past the plane's.
      for (long i = 0; i < count; ++i) {
        store(rows_[begin + i].first + y * width + j, _mm256_castps_si256(eight[i]));
      }
    }
#else
    for (long i = 0; i < count; ++i) {
      int16_t* line = rows_[begin + i].first + y * width;
      for (long j = 0; j < width; ++j) {
        const int16_t above = y ? line[j - width] : j > 1 ? line[j - 2] : int16_t{0};
        const int16_t left = j > 1 ? line[j - 2] : above;
        const int16_t sum = static_cast<int16_t>(left + above);
        line[j] = static_cast<int16_t>((sum >> 1) + lists_[i].numbers[j]);
      }
    }
#endif
  }

  // Plane `plane` of some rows, from the last to the first: a row reads what the one before it was
  // at the plane before.
  void next_planes(long begin, long end, long plane) {
    long chosen[kTogether], count = 0, left = 0, share = 0;
    for (long row = begin; row < end; ++row) left += rows_[row].depth > plane;
    for (long row = end - 1; row >= begin; --row) {
      if (rows_[row].depth <= plane) continue;
      if (count == 0) {  // what is left, in even parts
        const long parts = (left + kTogether - 1) / kTogether;
        share = (left + parts - 1) / parts;
      }
      chosen[count++] = row, --left;
      if (count < share) continue;
      next_plane(chosen, count, plane);
      for (long i = 0; i < count; ++i) put(chosen[i], plane, rows_[chosen[i]].now);
      count = 0;
    }
  }

  void next_plane(const long* chosen, long count, long plane) {
    for (long i = 0; i < count; ++i) {
      const DecodedRow& row = rows_[chosen[i]];
      list_points(row, rows_[row.earlier], lists_[i], plane);
    }
    decode(chosen, count, &Lists::count, &Lists::contexts, &Lists::symbols);
    for (long i = 0; i < count; ++i) list_changes(rows_[chosen[i]], lists_[i]);
    decode(chosen, count, &Lists::changes, &Lists::value_contexts, &Lists::values);
    for (long i = 0; i < count; ++i) change(rows_[chosen[i]], lists_[i], rows_[chosen[i]].coder);
  }

  // Symbols of a list of each row by their contexts, a step of every row in turn.
  void decode(const long* chosen, long count, long Lists::* size, uint8_t* Lists::* contexts,
              uint8_t* Lists::* symbols) {
    long most = 0;
    for (long i = 0; i < count; ++i) most = lists_[i].*size > most ? lists_[i].*size : most;
    for (long j = 0; j < most; j += kLanes) {
      for (long i = 0; i < count; ++i) {
        DecodedRow& row = rows_[chosen[i]];
        const Lists& list = lists_[i];
        const long left = list.*size - j;
        if (left > 0) step(row.table, row.coder, list.*contexts + j, list.*symbols + j, left);
      }
    }
  }

  const CodedRows& coded_;
  int16_t* const out_;
  uint32_t* tables_ = nullptr;
  DecodedRow* rows_ = nullptr;
  int16_t* fields_ = nullptr;
  uint8_t* slopes_ = nullptr;
  int16_t* lines_ = nullptr;  // a line of some rows, column after column
  Lists lists_[kTogether];
};

bool decode_rows(const CodedRows& coded, const RowLayout& layout, int16_t* out) {
  return Rows(coded, layout, out).run();
}

}  // namespace

extern const DecodeRows kDecodeRows;
const DecodeRows kDecodeRows = decode_rows;

}  // namespace MME_ISA
}  // namespace mme
