// Decoding the rows of a store: rANS, and what predicts it (mme_targets/store_codec.py). A symbol
// waits for the one before it in its row, so rows go together, plane by plane.
#include "simd.h"

#include "row_points.h"
#include "track_rows.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace mme {
namespace MME_ISA {
namespace {

// Rows that go together.
constexpr long kTogether = 8;

// Memory that a thread keeps from one call to the next: fresh pages would take a tenth of the time.
class Memory {
 public:
  ~Memory() { std::free(held_); }

  // Aligned to 64 bytes; null if there is none.
  uint8_t* get(size_t bytes) {
    if (bytes > size_) {
      std::free(held_);
      held_ = std::malloc(bytes + 64);
      size_ = held_ ? bytes : 0;
      if (!held_) return nullptr;
    }
    return static_cast<uint8_t*>(held_) + (64 - reinterpret_cast<uintptr_t>(held_) % 64) % 64;
  }

  void keep(size_t most) {
    if (size_ <= most) return;
    std::free(held_);
    held_ = nullptr, size_ = 0;
  }

 private:
  void* held_ = nullptr;
  size_t size_ = 0;
};
constexpr size_t kKept = 1 << 24;
thread_local Memory memory;

class Rows : private Points {
 public:
  Rows(const CodedRows& coded, const RowLayout& layout) : Points(layout), coded_(coded) {}
  ~Rows() { memory.keep(kKept); }

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
          next_planes(chosen, count, plane);
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
    // Numbers of a plane, and what may be read around them.
    const long around = (2 * layout_.gx + 2 * kGroup) / 32 * 32 + 32;
    const long field = (2 * points_ + 31) / 32 * 32 + 2 * around, n = coded_.count;
    const long groups = (points_ + kGroup - 1) / kGroup;
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
    const long wide = reserve(2 * kTogether * field * sizeof(int16_t));
    const long patterns = reserve(3 * kTogether * groups);
    const long origins = reserve(field * sizeof(int16_t));
    const long lines = reserve(2 * (layout_.gx + kGroup) * kTogether * sizeof(int16_t));
    uint8_t* base = memory.get(size);
    if (!base) return false;
    tables_ = reinterpret_cast<uint32_t*>(base + tables);
    for (long i = 0; i < coded_.tables; ++i) {
      if (!fill(coded_.frequencies + i * kContexts * 256, tables_ + i * kContexts * kTotal)) {
        return false;
      }
    }
    rows_ = reinterpret_cast<Row*>(base + rows);
    int16_t* of_rows = reinterpret_cast<int16_t*>(base + fields) + around;
    for (long i = 0, before = 0; i < n; ++i) {
      Row& row = rows_[i];
      row.number = coded_.rows[i], row.depth = coded_.depth[i];
      row.table = tables_ + coded_.table[i] * kContexts * kTotal;
      row.first = of_rows + 4 * i * field, row.now = row.first + field;
      row.trail[0] = row.now + field, row.trail[1] = row.trail[0] + field;
      row.slopes = base + slopes + i * (points_ + kPast);
      std::memset(row.trail[0], 0, 2 * points_ * sizeof(int16_t));
      for (int16_t* some : {row.now, row.trail[0], row.trail[1]}) {
        std::memset(some + 2 * points_, 0, 2 * kGroup * sizeof(int16_t));
      }
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
      list.predicted = reinterpret_cast<int16_t*>(base + wide) + 2 * i * field;
      list.numbers = list.predicted + field;
      list.changed = reinterpret_cast<uint16_t*>(base + patterns) + i * groups;
      list.may = base + patterns + 2 * kTogether * groups + i * groups;
    }
    origins_ = reinterpret_cast<int16_t*>(base + origins);
    std::memset(origins_ + 2 * points_, 0, 2 * kGroup * sizeof(int16_t));
    for (long j = 0, i = 0; j < layout_.gy; ++j) {
      for (long k = 0; k < layout_.gx; ++k, ++i) {
        origins_[2 * i] = static_cast<int16_t>(64 * k);
        origins_[2 * i + 1] = static_cast<int16_t>(64 * j);
      }
    }
    lines_ = reinterpret_cast<int16_t*>(base + lines);
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
      first_line(begin, count, y);
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
    int16_t* __restrict numbers = list.numbers;
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

  // Plane `plane` of some rows, from the last to the first.
  void next_planes(const long* chosen, long count, long plane) {
    long most = 0;
    for (long i = 0; i < count; ++i) {
      const Row& row = rows_[chosen[i]];
      list_points(row, rows_[row.earlier], lists_[i], plane);
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
      if (lists_[i].changes > most) most = lists_[i].changes;
    }
    for (long j = 0; j < most; j += kLanes) {
      for (long i = 0; i < count; ++i) {
        Row& row = rows_[chosen[i]];
        const long left = lists_[i].changes - j;
        if (left > 0) {
          step(row.table, row.coder, lists_[i].value_contexts + j, lists_[i].values + j, left);
        }
      }
    }
    for (long i = 0; i < count; ++i) change(rows_[chosen[i]], lists_[i]);
  }

  const CodedRows& coded_;
  uint32_t* tables_ = nullptr;
  Row* rows_ = nullptr;
  int16_t* lines_ = nullptr;  // a line of some rows, column after column
  Lists lists_[kTogether];
};

bool decode_rows(const CodedRows& coded, const RowLayout& layout, int16_t* out) {
  return Rows(coded, layout).run(out);
}

}  // namespace

extern const DecodeRows kDecodeRows;
const DecodeRows kDecodeRows = decode_rows;

}  // namespace MME_ISA
}  // namespace mme
