// TV-L1's iterations. A warp takes a tile of 64 columns and walks down its rows with up to kDeep
// iterations at once: iteration j is j rows behind the first, and hands its row on in registers.
//
// At time t iteration j updates the flow of row y = t - j, which needs the dual variables of y and
// y - 1, and then the dual variables of y - 1, which need the flow of both. What it needs of the
// iteration before it was made just now (dual variables of y) or a row earlier (flow of y). So a
// row is read and written once, there is no barrier, and neighbouring columns come by shuffles.
// Tiles overlap by what their borders spoil: kDeep rows and columns.
#pragma once

#include "tvl1_team.h"

namespace mme::cuda {

// The flow of two pixels and its dual variables, by component.
template <int kFlow>
struct Row {
  float u[kFlow][2], x[kFlow][2], y[kFlow][2];
};

struct Pass {
  int flow, dual, data;    // offsets of the rows read,
  int new_flow, new_dual;  // of those written,
  int errors;              // and of a sum of squared updates for each row and strip; -1: of none
  int count;               // iterations
};

// What a warp's tile is. It lies in shared memory and is read anew for each row: pixels need the
// registers.
struct Place {
  Pass pass;
  int height, pitch, strip, strips;
  int begin, top, bottom;  // rows: the first one read; those that are written
  // Times: those at which all iterations are on rows that they update; the end.
  int whole, whole_end, end;
};

template <bool kGamma>
struct Tile {
  static constexpr int kDeep = Shape<kGamma>::kDeep, kFlow = Shape<kGamma>::kFlow,
                       kData = Shape<kGamma>::kData;
  using Pixels = Row<kFlow>;

  const volatile Place& place;
  const DualSteps& steps;
  float* memory;
  float2* ring;  // the lane's own: data terms of the rows in flight
  int x;
  bool mine[2], last[2];  // columns that are written; the frame's last one

  Pixels next;
  float2 next_data[kData];
  // Of iteration j: the flow that it made of the row before, and the dual variables that it read of
  // it.
  float flow[kDeep][kFlow][2];
  float above_x[kDeep][kFlow][2], above_y[kDeep][kFlow][2];

  __device__ __forceinline__ Tile(const volatile Place& tile, const DualSteps& dual_steps,
                                  int width, float* team_memory, float2* lane_ring)
      : place(tile), steps(dual_steps), memory(team_memory), ring(lane_ring) {
    const int strip = place.strip, strips = place.strips;
    const int origin = strip * Shape<kGamma>::kStride;
    x = origin + 2 * lane();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool left = strip == 0 || x + i >= origin + kDeep;
      const bool right = strip == strips - 1 || x + i < origin + kColumns - kDeep;
      mine[i] = left && right && x + i < width, last[i] = x + i == width - 1;
    }
#pragma unroll
    for (int j = 0; j < kDeep; ++j) {
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) flow[j][c][i] = above_x[j][c][i] = above_y[j][c][i] = 0.f;
      }
    }
  }

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  // The row that iteration 0 takes next, ahead of time.
  __device__ __forceinline__ void fetch(int y) {
    if (y >= place.height) return;
    const int pitch = place.pitch;
    const int flow_at = place.pass.flow + y * pitch * kFlow + x;
    const int dual_at = place.pass.dual + y * pitch * 2 * kFlow + x;
    const int data_at = place.pass.data + y * pitch * kData + x;
    const auto load = [&](int offset) { return *reinterpret_cast<const float2*>(memory + offset); };
    const auto put = [](float (&to)[2], float2 from) { to[0] = from.x, to[1] = from.y; };
#pragma unroll
    for (int c = 0; c < kFlow; ++c) {
      put(next.u[c], load(flow_at + c * pitch));
      put(next.x[c], load(dual_at + 2 * c * pitch));
      put(next.y[c], load(dual_at + (2 * c + 1) * pitch));
    }
#pragma unroll
    for (int k = 0; k < kData; ++k) next_data[k] = load(data_at + k * pitch);
  }

  __device__ __forceinline__ void keep_data(int slot) {
#pragma unroll
    for (int k = 0; k < kData; ++k) ring[(slot * kData + k) * kWarp] = next_data[k];
  }

  // Flow of a row after one iteration.
  __device__ __forceinline__ void primal(const Pixels& in, int j, int slot,
                                         float (&out)[kFlow][2]) {
    float2 data[kData];
#pragma unroll
    for (int k = 0; k < kData; ++k) data[k] = ring[(slot * kData + k) * kWarp];
    float left[kFlow];
#pragma unroll
    for (int c = 0; c < kFlow; ++c) {
      left[c] = __shfl_up_sync(kAllLanes, in.x[c][1], 1);
      left[c] = lane() == 0 ? 0.f : left[c];  // the frame's border, or spoilt
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto of = [&](int k) { return i == 0 ? data[k].x : data[k].y; };
      float residual = madd(of(2), in.u[1][i], madd(of(1), in.u[0][i], of(0)));
      if (kGamma) residual = madd(of(kData - 1), in.u[kFlow - 1][i], residual);
      const float move = data_step(residual, of(3));
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
        const float aim = nmadd(move, of(c < 2 ? c + 1 : kData - 1), in.u[c][i]);
        out[c][i] = primal_step(aim, in.x[c][i], i == 0 ? left[c] : in.x[c][0], in.y[c][i],
                                above_y[j][c][i]);
      }
    }
  }

  // Dual variables of the row above `below`, whose flow is out.u.
  __device__ __forceinline__ void dual(int j, const float (&below)[kFlow][2], Pixels* out) {
    float ux[kFlow][2], uy[kFlow][2], divisor[kFlow][2];
#pragma unroll
    for (int c = 0; c < kFlow; ++c) {
      const float right = __shfl_down_sync(kAllLanes, out->u[c][0], 1);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float here = out->u[c][i];
        // No gradient across the right border.
        ux[c][i] = last[i] ? 0.f : (i == 0 ? out->u[c][1] : right) - here;
        uy[c][i] = below[c][i] - here;
        divisor[c][i] = dual_divisor(ux[c][i], uy[c][i], steps.slope, 1.f, kTinySquare);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float both = inverse(divisor[0][i] * divisor[1][i]);  // one for two
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
        const float factor = c == 2 ? inverse(divisor[c][i]) : both * divisor[1 - c][i];
        out->x[c][i] = madd(steps.tau, ux[c][i], above_x[j][c][i]) * factor;
        out->y[c][i] = madd(steps.tau, uy[c][i], above_y[j][c][i]) * factor;
      }
    }
  }

  // The squared updates of a row, added in one order whatever the tiles' height.
  __device__ __forceinline__ void add_errors(int y, const float (&before)[kFlow][2],
                                             const float (&after)[kFlow][2]) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float square = 0.f;
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
        const float d = after[c][i] - before[c][i];
        square = madd(d, d, square);
      }
      sum = add(sum, mine[i] ? square : 0.f);
    }
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      sum = add(sum, __shfl_xor_sync(kAllLanes, sum, distance));
    }
    if (lane() == 0) memory[place.pass.errors + y * place.strips + place.strip] = sum;
  }

  // Time t, whose row has `ring_slot` of the ring. kEdge: some iterations have not begun, are past
  // the last row or do nothing.
  template <bool kEdge>
  __device__ __forceinline__ void advance(int t, int* ring_slot) {
    const int slot = *ring_slot, next_slot = slot + 1 < kDeep ? slot + 1 : 0;
    const int begin = place.begin, height = place.height, idle = kDeep - place.pass.count;
    Pixels in = next;
    fetch(t + 1);
#pragma unroll
    for (int j = 0; j < kDeep; ++j) {
      const int y = t - j;
      // The first row whose flow can be told: the frame's first, else each iteration costs one.
      const int start = begin == 0 ? 0 : begin + j + 1;
      Pixels out;
      float made[kFlow][2];
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          made[c][i] = out.u[c][i] = flow[j][c][i];
          if (kEdge) out.x[c][i] = out.y[c][i] = 0.f;
        }
      }
      if (kEdge && j < idle) {
#pragma unroll
        for (int c = 0; c < kFlow; ++c) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            made[c][i] = in.u[c][i];
            out.x[c][i] = above_x[j][c][i], out.y[c][i] = above_y[j][c][i];
          }
        }
      } else {
        if (!kEdge || (y >= start && y < height)) {
          primal(in, j, slot >= j ? slot - j : slot - j + kDeep, made);
        }
        if (!kEdge || (y > start && y <= height)) dual(j, made, &out);
      }
      if (j == kDeep - 1 && place.pass.errors >= 0 && written(y)) add_errors(y, in.u, made);
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          flow[j][c][i] = made[c][i];
          above_x[j][c][i] = in.x[c][i], above_y[j][c][i] = in.y[c][i];
        }
      }
      in = out;
    }
    if (!kEdge || written(t - kDeep)) write(t - kDeep, in);
    keep_data(next_slot);
    *ring_slot = next_slot;
  }

  __device__ __forceinline__ bool written(int y) const {
    return y >= place.top && y < place.bottom;
  }
  __device__ __forceinline__ void write(int y, const Pixels& row) {
    const int pitch = place.pitch;
    float* flow_row = memory + (place.pass.new_flow + y * pitch * kFlow + x);
    float* dual_row = memory + (place.pass.new_dual + y * pitch * 2 * kFlow + x);
    const auto store_all = [&](auto store) {
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
        store(flow_row + c * pitch, row.u[c]);
        store(dual_row + 2 * c * pitch, row.x[c]);
        store(dual_row + (2 * c + 1) * pitch, row.y[c]);
      }
    };
    if (mine[0] && mine[1]) {
      store_all([](float* to, const float (&value)[2]) {
        *reinterpret_cast<float2*>(to) = make_float2(value[0], value[1]);
      });
    } else if (mine[0]) {
      store_all([](float* to, const float (&value)[2]) { to[0] = value[0]; });
    } else if (mine[1]) {
      store_all([](float* to, const float (&value)[2]) { to[1] = value[1]; });
    }
  }

  __device__ __forceinline__ void run() {
    fetch(place.begin);
    keep_data(0);
    int t = place.begin, slot = 0;
#pragma unroll 1
    for (; t < place.end; ++t) {
      if (t >= place.whole && t < place.whole_end) {
        advance<false>(t, &slot);
      } else {
        advance<true>(t, &slot);
      }
    }
  }
};

// Up to kDeep iterations of a level. `places` and `rings` lie in shared memory: for each warp, and
// for each thread.
template <bool kGamma>
__device__ __forceinline__ void iterate(const Team& team, const Level& level, const Pass& pass,
                                        const DualSteps& steps, float* memory, Place* places,
                                        float2* rings) {
  using Tiles = Tile<kGamma>;
  constexpr int kDeep = Tiles::kDeep;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll 1
  for (int number = team.warp(); number < level.strips * level.bands;
       number += team.size * kTeamWarps) {
    __syncwarp();
    if (lane == 0) {
      const int band = number / level.strips;
      const auto border = [&](int b) {
        return static_cast<int>(static_cast<int64_t>(level.height) * b / level.bands);
      };
      const int top = border(band), bottom = border(band + 1), end = bottom + kDeep;
      const int begin = top > kDeep ? top - kDeep : 0;
      places[warp] = {pass,
                      level.height,
                      level.pitch,
                      number - band * level.strips,
                      level.strips,
                      begin,
                      top,
                      bottom,
                      pass.count == kDeep ? begin + 2 * kDeep : end,
                      end < level.height ? end : level.height,
                      end};
    }
    __syncwarp();
    float2* ring = rings + warp * (kDeep * Tiles::kData * kWarp) + lane;
    Tiles(places[warp], steps, level.width, memory, ring).run();
  }
}

// All errors added in one order: the same in every warp.
__device__ inline double total_error(const float* errors, int count) {
  double sum = 0;
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sum += errors[i];
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  return sum;
}

}  // namespace mme::cuda
