// Decoding the rows of a store: rANS, and what predicts it (mme_targets/store_codec.py). A symbol
// waits for the one before it in its row, so rows go together, plane by plane.
#include "simd.h"

#include "row_points.h"
#include "track_rows.h"

#include <cstdlib>
#include <cstring>

namespace mme {
namespace MME_ISA {
namespace {

// Rows that go together.
constexpr long kTogether = 4;
constexpr int32_t kFarthest = 32000;

class Rows : private Points {
 public:
  Rows(const CodedRows& coded, const RowLayout& layout) : Points(layout), coded_(coded) {}
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

  // Plane `plane` of some rows, from the last to the first.
  void next_planes(const long* chosen, long count, long plane) {
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

  const CodedRows& coded_;
  void* memory_ = nullptr;
  uint32_t* tables_ = nullptr;
  Row* rows_ = nullptr;
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
