// Memory for coding the rows of a store, in one piece.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace mme {
namespace MME_ISA {
namespace {

class Memory {
 public:
  ~Memory() { std::free(held_); }

  // Aligned to 64 bytes; null if there is none. What was there before is lost.
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

// Where the parts of a piece of memory begin, each on 64 bytes.
struct Parts {
  long size = 0;

  long reserve(long bytes) {
    const long at = size;
    size += (bytes + 63) / 64 * 64;
    return at;
  }
};

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
