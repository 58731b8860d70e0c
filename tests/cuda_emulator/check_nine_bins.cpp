// Compares csrc/common/nine_bins.h with the definition in descriptors.h, for every gradient that
// uint8 frames can have.
#include "../../csrc/common/nine_bins.h"

using namespace mme;

// Gradients whose bin or magnitude differs.
extern "C" int nine_bins_mismatches() {
  const BinTable table = bin_table(9);
  int wrong = 0;
  for (int y = -1020; y <= 1020; ++y) {
    for (int x = -1020; x <= 1020; ++x) {
      const Gradient g{static_cast<float>(x), static_cast<float>(y)};
      const Gradient scaled{g.x / kNineBinsScale, g.y / kNineBinsScale};
      const uint32_t offset = nine_bin_offset(nine_bin(scaled), 256.f, nine_bin_base(12));
      const bool same_bin = offset == 256u * static_cast<uint32_t>(hard_bin(g, table)) + 12;
      const bool nothing = x == 0 && y == 0;  // adds nothing, to whichever bin
      const bool same_size = nine_bins_magnitude(scaled) * kNineBinsScale == magnitude(g);
      wrong += !((same_bin || nothing) && same_size);
    }
  }
  return wrong;
}

// Sobel of biased bytes against that of integers, for random neighbourhoods.
extern "C" int biased_sobel_mismatches(int count) {
  uint32_t state = 1;
  int wrong = 0;
  for (int n = 0; n < count; ++n) {
    RowSums<int> whole[3];
    RowSums<float> biased[3];
    for (int r = 0; r < 3; ++r) {
      state = state * 1664525u + 1013904223u;
      // The extremes are where a rounding would show first.
      const uint32_t word = n % 4 ? state : (state & 0x01010100u) / 256 * 255;
      whole[r] = row_sums<int>(word & 255, word >> 8 & 255, word >> 16 & 255);
      biased[r] = row_sums(biased_byte(word, 0), biased_byte(word, 1), biased_byte(word, 2));
    }
    const Gradient a = sobel(whole[0], whole[1], whole[2]);
    const Gradient b = sobel(biased[0], biased[1], biased[2]);
    wrong += b.x * kNineBinsScale != a.x || b.y * kNineBinsScale != a.y;
  }
  return wrong;
}
