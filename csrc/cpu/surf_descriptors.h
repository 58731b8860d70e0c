// SURF's directions and descriptors, one point after another. Four regions of a window lie beside
// each other: they are the lanes, so their columns are taken in turns.
#pragma once

#include "fast_hessian.h"

namespace mme {
namespace MME_ISA {
namespace {

constexpr int kTurns = 5;                   // columns of a region
constexpr int kColumns = 4 * (kTurns + 1);  // of boxes, in turns: the last turn repeats
constexpr int kEdges = 4 * (kTurns + 2);
constexpr int kPaddedDirections = 80;  // a multiple of all numbers of lanes

typedef int FourInt __attribute__((vector_size(16)));

// Column of a window that is the i-th in turns: 0, 5, 10, 15; 1, 6, 11, 16; ...
MME_WIDE int in_turns(int i) { return kTurns * (i % 4) + i / 4; }

// What all points share; in the order that the loops read it.
struct SurfTables {
  float falloff[kWindow - 1][4 * kTurns];
  float disc[kDisc];
  float cosine[kPaddedDirections], sine[kPaddedDirections];

  // [20, 20], [109] and [72, 2]
  SurfTables(const float* window, const float* weights, const float* compass) {
    for (int y = 0; y < kWindow - 1; ++y) {
      for (int i = 0; i < 4 * kTurns; ++i) falloff[y][i] = window[y * (kWindow - 1) + in_turns(i)];
    }
    for (int i = 0; i < kDisc; ++i) disc[i] = weights[i];
    for (int i = 0; i < kPaddedDirections; ++i) {
      cosine[i] = i < kDirections ? compass[2 * i] : 0.f;
      sine[i] = i < kDirections ? compass[2 * i + 1] : 0.f;
    }
  }
};

struct Direction {
  float cosine, sine;
};

// Where most gradients in a disc around a point lead; `sums` is at the point.
Direction orientation(const uint32_t* sums, long pitch, int scale, const SurfTables& tables) {
  constexpr int kReach = kDiscRadius - 1, kGrid = 2 * kReach + 5;  // and two scales on each side
  uint32_t grid[kGrid][kGrid];
  for (int j = 0; j < kGrid; ++j) {
    const uint32_t* row = sums + (j - kGrid / 2) * scale * pitch - kGrid / 2 * scale;
    for (int i = 0; i < kGrid; ++i) grid[j][i] = row[i * scale];
  }
  float gx[kDisc], gy[kDisc], least[kDisc];
  int m = 0;
  for (int j = -kReach; j <= kReach; ++j) {
    for (int i = -kReach; i <= kReach; ++i) {
      if (i * i + j * j >= kDiscRadius * kDiscRadius) continue;
      const auto at = [&](int y, int x) { return grid[j + y + kGrid / 2][i + x + kGrid / 2]; };
      const uint32_t dx = (at(2, 2) - at(-2, 2) - at(2, 0) + at(-2, 0)) -
                          (at(2, 0) - at(-2, 0) - at(2, -2) + at(-2, -2));
      const uint32_t dy = (at(2, 2) - at(0, 2) - at(2, -2) + at(0, -2)) -
                          (at(0, 2) - at(-2, 2) - at(0, -2) + at(-2, -2));
      gx[m] = static_cast<float>(static_cast<int>(dx)) * tables.disc[m];
      gy[m] = static_cast<float>(static_cast<int>(dy)) * tables.disc[m];
      ++m;
    }
  }
  // Within 30 degrees of a direction: cos^2 of the angle is 3/4 at least.
  for (int i = 0; i < kDisc; ++i) least[i] = 0.75f * (gx[i] * gx[i] + gy[i] * gy[i]);
  float along_x[kPaddedDirections], along_y[kPaddedDirections];
  const Wide zero = wide(0.f);
  for (int d = 0; d < kPaddedDirections; d += kLanes) {
    const Wide cosine = load(tables.cosine + d), sine = load(tables.sine + d);
    Wide ax = zero, ay = zero;
    for (int i = 0; i < kDisc; ++i) {
      const Wide x = wide(gx[i]), y = wide(gy[i]);
      const Wide along = x * cosine + y * sine;
      const auto near = (along > zero) & (along * along >= wide(least[i]));
      ax = ax + (near ? x : zero), ay = ay + (near ? y : zero);
    }
    store(along_x + d, ax), store(along_y + d, ay);
  }
  int best = 0;
  float longest = -1.f;
  for (int d = 0; d < kDirections; ++d) {
    const float length = along_x[d] * along_x[d] + along_y[d] * along_y[d];
    if (length > longest) longest = length, best = d;
  }
  const float length = root(longest);
  if (length == 0.f) return {1.f, 0.f};
  return {along_x[best] / length, along_y[best] / length};
}

// Sums of the boxes of one scale of an upright window: they lie side by side and share edges.
void boxes(const uint32_t* sums, long pitch, int scale, float (*out)[kColumns]) {
  int offset[kEdges];
  for (int i = 0; i < kEdges; ++i) offset[i] = in_turns(i) * scale;
  const uint32_t* row = sums - (kWindow / 2 * scale + scale / 2) * (pitch + 1);
  uint32_t edges[2][kEdges];
  for (int y = 0; y <= kWindow; ++y, row += scale * pitch) {
    uint32_t *here = edges[y % 2], *up = edges[1 - y % 2];
    for (int i = 0; i < kEdges; ++i) here[i] = row[offset[i]];
    if (y == 0) continue;
    for (int i = 0; i < kColumns; ++i) {
      const uint32_t sum = (here[i + 4] - up[i + 4]) - (here[i] - up[i]);
      out[y - 1][i] = static_cast<float>(static_cast<int>(sum));
    }
  }
}

// The same on a grid turned by a direction.
void turned_boxes(const uint32_t* sums, long pitch, int scale, Direction direction,
                  float (*out)[kColumns]) {
  float u[kColumns];
  for (int i = 0; i < kColumns; ++i) {
    u[i] = static_cast<float>((in_turns(i) - kWindow / 2) * scale);
  }
  const uint32_t* low = sums + scale * pitch;
  for (int y = 0; y < kWindow; ++y) {
    const float v = static_cast<float>((y - kWindow / 2) * scale);
    long at[kColumns];
    for (int i = 0; i < kColumns; ++i) {
      const int left = whole(direction.cosine * u[i] - direction.sine * v) - scale / 2;
      const int top = whole(direction.sine * u[i] + direction.cosine * v) - scale / 2;
      at[i] = top * pitch + left;
    }
    for (int i = 0; i < kColumns; ++i) {
      const uint32_t sum = low[at[i] + scale] - sums[at[i] + scale] - low[at[i]] + sums[at[i]];
      out[y][i] = static_cast<float>(static_cast<int>(sum));
    }
  }
}

MME_WIDE Four kept(FourInt mask, Four value) { return (Four)(mask & (FourInt)value); }
MME_WIDE Four size_of(Four value) { return (Four)((FourInt)value & 0x7fffffff); }

// Gradients of a window summed over its 4 x 4 regions: of each row of a region first, from left to
// right, then of the rows. Rounded to 1/512 of the whole.
template <bool kExtended>
void descriptor(const float (*box)[kColumns], const SurfTables& tables, float* out) {
  constexpr int kParts = kExtended ? 8 : 4, kValues = 16 * kParts;
  float summed[kValues];
  for (int region = 0; region < 4; ++region) {
    Four total[kParts];
    for (int i = 0; i < kTurns; ++i) {
      const int y = kTurns * region + i;
      Four line[kParts];
      for (int turn = 0; turn < kTurns; ++turn) {
        const float *up = box[y] + 4 * turn, *low = box[y + 1] + 4 * turn;
        const Four a = load4(up), b = load4(up + 4), c = load4(low), d = load4(low + 4);
        const Four weight = load4(tables.falloff[y] + 4 * turn);
        const Four dx = ((b + d) - (a + c)) * weight, dy = ((c + d) - (a + b)) * weight;
        Four part[kParts];
        if (kExtended) {
          const Four none = {0.f, 0.f, 0.f, 0.f};
          const FourInt down = (FourInt)(dy >= none), right = (FourInt)(dx >= none);
          part[0] = kept(down, dx), part[2] = kept(~down, dx);
          part[4] = kept(right, dy), part[6] = kept(~right, dy);
          for (int k = 0; k < 8; k += 2) part[k + 1] = size_of(part[k]);
        } else {
          part[0] = dx, part[1] = dy, part[2] = size_of(dx), part[3] = size_of(dy);
        }
        for (int k = 0; k < kParts; ++k) line[k] = turn == 0 ? part[k] : line[k] + part[k];
      }
      for (int k = 0; k < kParts; ++k) total[k] = i == 0 ? line[k] : total[k] + line[k];
    }
    for (int k = 0; k < kParts; ++k) {
      for (int i = 0; i < 4; ++i) summed[(4 * region + i) * kParts + k] = total[k][i];
    }
  }
  float squares[kValues];
  for (int i = 0; i < kValues; ++i) squares[i] = summed[i] * summed[i];
  for (int half = kValues / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) squares[i] += squares[i + half];
  }
  const float length = root(squares[0]), divisor = length > 0.f ? length : 1.f;
  for (int i = 0; i < kValues; ++i) out[i] = __builtin_rintf(summed[i] / divisor * kSteps);
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
