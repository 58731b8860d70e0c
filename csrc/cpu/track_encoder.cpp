// Encoding the rows of a store (mme_targets/store_codec.py): the symbols of each row and how often
// they come; then, by tables that are made of that, the bytes. A row needs no other one's symbols,
// only the displacements that its tracks came by.
#include "simd.h"

#include "rans_encoder.h"
#include "row_memory.h"
#include "row_points.h"
#include "track_encoder.h"

#include <cstring>

namespace mme {
namespace MME_ISA {
namespace {

constexpr int32_t kLargest = 127;  // that a symbol holds

class Symbols : private Points {
 public:
  Symbols(const PlainRows& plain, const RowLayout& layout) : Points(layout), plain_(plain) {}

  bool run(RowSymbols* out, int64_t* counts) {
    if (!prepare()) return false;
    for (long row = 0; row < plain_.count; ++row) {
      list_row(row);
      if (!keep(out[row])) return false;
    }
    for (long i = 0; i < kContexts * 256; ++i) counts[i] += counts_[i];
    return true;
  }

 private:
  // Symbols up to where a step begins.
  static long in_steps(long count) { return (count + kLanes - 1) / kLanes * kLanes; }

  bool prepare() {
    const long width = 2 * layout_.gx, kFields = 9;
    const long most = layout_.gy * in_steps(width) +
                      (plain_.planes - 1) * (in_steps(points_) + in_steps(2 * points_));
    Parts parts;
    const long counts = parts.reserve(kEntries * sizeof(int64_t));
    const long fields = parts.reserve(kFields * field_ * sizeof(int16_t));
    const long slopes = parts.reserve(points_ + kPast);
    const long may = parts.reserve(groups());
    const long weights = parts.reserve(width + kPast);
    const long residuals = parts.reserve((width + kPast) * sizeof(int16_t));
    const long values = parts.reserve(2 * points_ + kPast);
    const long value_contexts = parts.reserve(2 * points_ + kPast);
    const long symbols = parts.reserve(most + kPast), contexts = parts.reserve(most + kPast);
    const long numbers = parts.reserve(2 * plain_.planes * points_ * sizeof(int16_t));
    uint8_t* base = memory_.get(parts.size);
    if (!base) return false;
    counts_ = reinterpret_cast<int64_t*>(base + counts);
    std::memset(counts_, 0, kEntries * sizeof(int64_t));
    // Zeros past the planes' ends, where lanes read, stay: what is put there is zero.
    std::memset(base + fields, 0, kFields * field_ * sizeof(int16_t));
    int16_t* field = reinterpret_cast<int16_t*>(base + fields) + around_;
    const auto next = [&] {
      int16_t* at = field;
      field += field_;
      return at;
    };
    row_.first = next(), row_.trail[0] = next(), row_.trail[1] = next();
    earlier_.now = next(), earlier_.trail[0] = earlier_.trail[1] = next();
    planes_[0] = next(), planes_[1] = next(), list_.predicted = next();
    set_origins(next());
    row_.slopes = base + slopes, list_.may = base + may;
    // With two of nothing on both sides.
    weights_ = base + weights + 2;
    residuals_ = reinterpret_cast<int16_t*>(base + residuals);
    // And so the weights past a line's end.
    std::memset(residuals_, 0, (width + kPast) * sizeof(int16_t));
    values_ = base + values, value_contexts_ = base + value_contexts;
    symbols_ = base + symbols, contexts_ = base + contexts;
    numbers_ = reinterpret_cast<int16_t*>(base + numbers);
    return true;
  }

  const int16_t* plane_of(long row, long plane) const {
    const int16_t* rows = row < 0 ? plain_.before : plain_.rows;
    return rows + ((row < 0 ? row + plain_.skipped : row) * plain_.planes + plane) * 2 * points_;
  }

  void copy(long row, long plane, int16_t* to) const {
    std::memcpy(to, plane_of(row, plane), 2 * points_ * sizeof(int16_t));
  }

  // Where tracks have come to at a plane of a row.
  void follow(long row, long plane, int16_t* came) const {
    long i = 0;
#if defined(MME_SIMD)
    for (; i + 2 * kGroup <= 2 * points_; i += 2 * kGroup) {
      I sum = set(0);
      for (long k = plane; k > 0; --k) {
        sum = moved_on(sum, load(plane_of(row - k * layout_.stride, plane - k) + i));
      }
      store(came + i, sum);
    }
#endif
    for (; i < 2 * points_; ++i) {
      int16_t sum = 0;
      for (long k = plane; k > 0; --k) {
        sum = moved_on(sum, plane_of(row - k * layout_.stride, plane - k)[i]);
      }
      came[i] = sum;
    }
  }

  void list_row(long row) {
    copy(row, 0, row_.first);
    size_ = held_ = 0;
    first_plane();
    if (plain_.planes > 1) slopes(row_);
    const long size = size_, held = held_;
    row_.marked = false;
    if (next_planes(row)) return;
    size_ = size, held_ = held;
    row_.marked = true;
    next_planes(row);
  }

  // Residuals of plane 0, line by line.
  void first_plane() {
    const long width = 2 * layout_.gx;
    std::memset(weights_ - 2, 0, width + kPast);
    for (long y = 0; y < layout_.gy; ++y) {
      residual_contexts(weights_, contexts_ + size_);
      residuals(y);
      uint8_t* __restrict symbols = symbols_ + size_;
      uint8_t* __restrict weights = weights_;
      const int16_t* __restrict numbers = residuals_;
      for (long j = 0; j < whole_lanes(width); ++j) {
        const int16_t number = numbers[j];
        const bool fits = number >= -kLargest && number <= kLargest;
        const uint8_t size = static_cast<uint8_t>(number < 0 ? -number : number);
        symbols[j] = static_cast<uint8_t>(fits ? number : kEscape);
        weights[j] = fits && size < 63 ? size : 63;
      }
      const bool escaped = std::memchr(symbols, kEscape, width) != nullptr;
      for (long j = 0; escaped && j < width; ++j) {
        if (symbols[j] == kEscape) numbers_[held_++] = numbers[j];
      }
      end_list(width);
    }
  }

  // What the numbers of line y of plane 0 differ by from what is left of and above them.
  void residuals(long y) const {
    const long width = 2 * layout_.gx;
    const int16_t* line = row_.first + y * width;
    const int16_t* above = y ? line - width : line - 2;
    for (long j = 0; j < 2; ++j) {
      residuals_[j] = y ? residual(line[j], above[j], above[j]) : line[j];
    }
    for (long j = 2; j < width; ++j) residuals_[j] = residual(line[j], line[j - 2], above[j]);
  }

  static int16_t residual(int16_t number, int16_t left, int16_t above) {
    return static_cast<int16_t>(number - (static_cast<int16_t>(left + above) >> 1));
  }

  // The planes after the first that tracks reach; false if points change that may not.
  bool next_planes(long row) {
    std::memset(row_.trail[0], 0, 2 * points_ * sizeof(int16_t));
    row_.now = row_.first;
    for (long plane = 1; plane < plain_.planes; ++plane) {
      if (plain_.first + row < plane * layout_.stride) break;
      const long earlier = row - layout_.stride;
      follow(earlier, plane - 1, earlier_.trail[0]);
      copy(earlier, plane - 1, earlier_.now);
      int16_t* next = planes_[plane & 1];
      copy(row, plane, next);
      list_.contexts = contexts_ + size_;
      list_points(row_, earlier_, list_, plane);
      if (!list_changes(next)) return false;
      row_.now = next;
    }
    return true;
  }

  // What changes to the next plane, then the values; false if points change that may not.
  bool list_changes(const int16_t* next) {
    uint8_t* symbols = symbols_ + size_;
    long values = 0;
    for (long g = 0; kGroup * g < points_; ++g) {
      const int may = list_.may[g];
      const int16_t* now = row_.now + 2 * kGroup * g;
      const int16_t* to = next + 2 * kGroup * g;
      const int16_t* predicted = list_.predicted + 2 * kGroup * g;
#if defined(MME_SIMD)
      const I same = _mm256_cmpeq_epi16(load(now), load(to));
      if (!may && _mm256_movemask_epi8(same) == -1) continue;
      const int changed = 0xffff & ~pattern(same);
      // Of each point 1 and 2, where its components differ.
      const I both = _mm256_madd_epi16(_mm256_andnot_si256(same, set(2 << 16 | 1)), words(1));
      const I none = _mm256_cmpeq_epi32(both, set(0));
      if (255 & ~_mm256_movemask_ps(_mm256_castsi256_ps(none)) & ~may) return false;
      const __m128i narrow =
          _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      store8(symbols,
             _mm_shuffle_epi8(_mm_packus_epi16(narrow, narrow), load8(kOrders.close[may])));
      symbols += __builtin_popcount(may);
      if (!changed) continue;
      value_contexts(row_, list_, g, changed, value_contexts_ + values);
      const I value = _mm256_sub_epi16(load(to), load(predicted));
      const I beyond = _mm256_or_si256(_mm256_cmpgt_epi16(value, words(kLargest)),
                                       _mm256_cmpgt_epi16(words(-kLargest), value));
      const I held = _mm256_blendv_epi8(value, words(-kEscape), beyond);
      values += put_close(
          _mm_packs_epi16(_mm256_castsi256_si128(held), _mm256_extracti128_si256(held, 1)), changed,
          values_ + values);
      for (int some = pattern(beyond) & changed; some; some &= some - 1) {
        const int j = __builtin_ctz(some);
        numbers_[held_++] = static_cast<int16_t>(to[j] - predicted[j]);
      }
#else
      int changed = 0;
      for (int j = 0; j < kGroup && kGroup * g + j < points_; ++j) {
        const int bits = (to[2 * j] != now[2 * j]) | (to[2 * j + 1] != now[2 * j + 1]) << 1;
        if (may >> j & 1) {
          *symbols++ = static_cast<uint8_t>(bits);
        } else if (bits) {
          return false;
        }
        changed |= bits << 2 * j;
      }
      value_contexts(row_, list_, g, changed, value_contexts_ + values);
      for (; changed; changed &= changed - 1) {
        const int j = __builtin_ctz(changed);
        const int16_t value = static_cast<int16_t>(to[j] - predicted[j]);
        const bool fits = value >= -kLargest && value <= kLargest;
        values_[values++] = static_cast<uint8_t>(fits ? value : kEscape);
        if (!fits) numbers_[held_++] = value;
      }
#endif
    }
    end_list(list_.count);
    // Not there at once: changes are put down eight at a time, past their end.
    std::memcpy(symbols_ + size_, values_, values);
    std::memcpy(contexts_ + size_, value_contexts_, values);
    end_list(values);
    return true;
  }

#if defined(MME_SIMD)
  // Which of sixteen words are set.
  MME_LANE static int pattern(I set) {
    return _mm_movemask_epi8(
        _mm_packs_epi16(_mm256_castsi256_si128(set), _mm256_extracti128_si256(set, 1)));
  }
#endif

  // The next list begins a step.
  void end_list(long count) {
    const long end = size_ + in_steps(count);
    for (size_ += count; size_ < end; ++size_) contexts_[size_] = kNone, symbols_[size_] = 0;
  }

  // A row's own memory for what was listed.
  bool keep(RowSymbols& out) {
    const size_t numbers = held_ * sizeof(int16_t);
    out.memory = static_cast<uint8_t*>(std::malloc(2 * size_ + numbers));
    if (!out.memory) return false;
    out.steps = size_ / kLanes, out.numbers = held_, out.marked = row_.marked;
    std::memcpy(out.memory, symbols_, size_);
    std::memcpy(out.memory + size_, contexts_, size_);
    std::memcpy(out.memory + 2 * size_, numbers_, numbers);
    for (long i = 0; i < size_; ++i) ++counts_[contexts_[i] << 8 | symbols_[i]];
    return true;
  }

  const PlainRows& plain_;
  Memory memory_;
  Row row_{}, earlier_{};
  Candidates list_{};
  int16_t* planes_[2]{};
  int64_t* counts_ = nullptr;
  int16_t* residuals_ = nullptr;  // a line's
  uint8_t* weights_ = nullptr;    // of the line above
  uint8_t *values_ = nullptr, *value_contexts_ = nullptr;
  // Of a row, and how many of them.
  uint8_t *symbols_ = nullptr, *contexts_ = nullptr;
  int16_t* numbers_ = nullptr;
  long size_ = 0, held_ = 0;
};

bool symbols(const PlainRows& plain, const RowLayout& layout, RowSymbols* out, int64_t* counts) {
  return Symbols(plain, layout).run(out, counts);
}

// Entries of a row's symbols, and the numbers that are to follow; how many, or -1 if a table does
// not hold a symbol.
long look_up(const RowSymbols& row, const uint32_t* table, uint32_t* entries, int16_t* escapes) {
  const long size = kLanes * row.steps;
  const uint8_t *symbols = row.memory, *contexts = symbols + size, *numbers = contexts + size;
  long count = 0;
  for (long i = 0; i < size; ++i) {
    uint32_t entry = table[contexts[i] << 8 | symbols[i]];
    if (__builtin_expect(entry & kEscaped, 0)) {
      entry &= ~kEscaped;
      if (!entry) return -1;
      if (symbols[i] == kEscape) {
        std::memcpy(escapes + count++, numbers, sizeof *escapes);
        numbers += sizeof *escapes;
      } else {
        escapes[count++] = static_cast<int8_t>(symbols[i]);
      }
    }
    entries[i] = entry;
  }
  return count;
}

bool bytes(const RowSymbols* rows, long count, const uint16_t* frequencies, RowBytes* out) {
  long steps = 0;
  for (long i = 0; i < count; ++i) steps = rows[i].steps > steps ? rows[i].steps : steps;
  Parts parts;
  const long table = parts.reserve(kEntries * sizeof(uint32_t));
  const long entries = parts.reserve(steps * kLanes * sizeof(uint32_t));
  const long escapes = parts.reserve(steps * kLanes * sizeof(int16_t));
  // Words, from its end on backwards.
  parts.reserve(steps * kLanes * sizeof(uint16_t) + kPast);
  Memory memory;
  uint8_t* base = memory.get(parts.size);
  if (!base) return false;
  uint32_t* table_at = reinterpret_cast<uint32_t*>(base + table);
  uint32_t* entries_at = reinterpret_cast<uint32_t*>(base + entries);
  int16_t* escapes_at = reinterpret_cast<int16_t*>(base + escapes);
  if (!fill_entries(frequencies, table_at)) return false;
  for (long i = 0; i < count; ++i) {
    const long escaped = look_up(rows[i], table_at, entries_at, escapes_at);
    if (escaped < 0) return false;
    int32_t state[kLanes];
    uint8_t* end = base + parts.size;
    const uint8_t* begin = put_steps(entries_at, rows[i].steps, state, end);
    if (rows[i].marked) state[0] = static_cast<int32_t>(state[0] | 1u << 31);
    out[i].size = static_cast<long>(sizeof state) + (end - begin) + 2 * escaped;
    uint8_t* at = out[i].memory = static_cast<uint8_t*>(std::malloc(out[i].size));
    if (!at) return false;
    std::memcpy(at, state, sizeof state);
    at += sizeof state;
    std::memcpy(at, begin, end - begin);
    at += end - begin;
    // The first one last.
    for (long j = escaped - 1; j >= 0; --j, at += 2) std::memcpy(at, escapes_at + j, 2);
  }
  return true;
}

}  // namespace

extern const EncodeRows kEncodeRows;
const EncodeRows kEncodeRows = {symbols, bytes};

}  // namespace MME_ISA
}  // namespace mme
