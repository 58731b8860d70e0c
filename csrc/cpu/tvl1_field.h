// What a level of the pyramid is solved on: the planes of flow, dual variables and data term, and
// the iterations over them.
//
// An iteration goes down the image once: at row y it updates the flow of y, which needs the dual
// variables of y and y - 1, and then the dual variables of y - 1, which need the flow of both. The
// next iteration may follow one row behind in the same memory. So a wave of iterations reads the
// image once, and a row stays in the cache until all of them have passed it.
#pragma once

#include "wide.h"

#include "../common/optical_flow.h"
#include "kernels.h"
#include "threads.h"

namespace mme {
namespace MME_ISA {
namespace {

// Planes that are also read one pixel to the side. The last two are of the illumination w, which
// only gamma > 0 has.
enum Plane { kU, kV, kQux, kQvx, kW, kQwx };
// Planes that are not: in blocks, one vector of each after another, so that one pointer serves all.
enum Blocked { kC, kNx, kNy, kLimit, kQuy, kQvy, kNz, kQwy };
template <bool kGamma>
constexpr int kPlanes = kGamma ? 6 : 4;
template <bool kGamma>
constexpr int kBlocked = kGamma ? 8 : 6;

constexpr int kMargin = 16;  // zeros before each row of a plane, and room behind its end

// A row is one piece of memory: its planes, then its blocks.
template <bool kGamma>
struct Field {
  float* data;
  int width, height;
  long plane, pitch;  // floats from one plane to the next, from one row to the next

  Field(float* memory, int w, int h)
      : data(memory), width(w), height(h), plane(plane_of(w)), pitch(pitch_of(w)) {}
  static long plane_of(int w) { return (w + kMargin) / kMargin * kMargin + kMargin; }
  // An odd number of cache lines, so that rows spread over all sets of the cache.
  static long pitch_of(int w) {
    const long blocks = (w + kMargin - 1) / kMargin * kMargin;
    const long lines = (plane_of(w) * kPlanes<kGamma> + blocks * kBlocked<kGamma>) / kMargin;
    return (lines | 1) * kMargin;
  }
  static long floats(int w, int h) { return pitch_of(w) * (h + 1L) + kMargin; }
  // Rows from -1 (zeros) to height - 1.
  float* row(int y, int which) const { return data + (y + 1L) * pitch + which * plane + kMargin; }
  float* blocks(int y) const { return data + (y + 1L) * pitch + kPlanes<kGamma> * plane + kMargin; }
  static constexpr int kBlock = kBlocked<kGamma> * kLanes;
};

struct Steps {
  float dual, slope;  // tau, tau / theta
};

// What a step does with the flow of its row: there is none past the last row; it is updated; it is
// read, because another step has updated it.
enum FlowOf { kNone, kUpdated, kRead };

// One component of the flow at row y and of its dual variables at row y - 1.
template <bool kGamma, FlowOf kFlow>
struct Component {
  const float* qx;
  float *u, *u_up, *qx_up;
  int qy;  // floats into a block

  MME_WIDE Component(const Field<kGamma>& f, int y, int plane, int dual, int blocked)
      : qx(kFlow != kNone ? f.row(y, dual) : nullptr),
        u(kFlow != kNone ? f.row(y, plane) : nullptr),
        u_up(f.row(y - 1, plane)),
        qx_up(f.row(y - 1, dual)),
        qy(blocked * kLanes) {}

  MME_WIDE Wide primal(int x, const float* block, const float* block_up, Wide v) const {
    const Wide next =
        primal_step(v, load(qx + x), load(qx + x - 1), load(block + qy), load(block_up + qy));
    store(u + x, next);
    return next;
  }
  // Gradient of the row above, given the row below it.
  MME_WIDE void gradient(int x, Wide below, Wide* ux, Wide* uy) const {
    const Wide here = load(u_up + x);
    *ux = load(u_up + x + 1) - here;
    *uy = kFlow != kNone ? below - here : wide(0.f);
  }
  MME_WIDE void dual(int x, float* block_up, Wide ux, Wide uy, Wide step, Wide factor) const {
    store(qx_up + x, madd(step, ux, load(qx_up + x)) * factor);
    store(block_up + qy, madd(step, uy, load(block_up + qy)) * factor);
  }
};

// Row y of one iteration: flow of y (kFlow: unless y is past the end), dual variables of y - 1
// (kDual: unless y is 0). With kError the sum of squared updates of the flow is returned.
//
// A vector goes through three stages, of which each has some 30 cycles of latency: the flow, the
// gradient with its length, the dual variables. They are worked on three vectors at a time, so that
// no stage waits for another: in one go, the scheduler would fill up with what waits.
template <bool kGamma, bool kError, FlowOf kFlow, bool kDual>
double step_row(const Field<kGamma>& f, int y, Steps steps) {
  using Part = Component<kGamma, kFlow>;
  const Part cu(f, y, kU, kQux, kQuy), cv(f, y, kV, kQvx, kQvy);
  const Part cw(f, y, kGamma ? kW : kU, kGamma ? kQwx : kQux, kGamma ? kQwy : kQuy);
  constexpr int kBlock = Field<kGamma>::kBlock;
  const float* block = f.blocks(kFlow != kNone ? y : 0);
  float* block_up = f.blocks(y - 1);  // both of the vector whose flow is next
  const Wide tau = wide(steps.dual), slope = wide(steps.slope), one = wide(1.f);
  const Wide tiny = wide(kTinySquare);
  Wide total = wide(0.f);

  Wide u = one, v = one, w = one;  // between the first stage and the second
  const auto flow = [&](int x) {
    if (kFlow == kNone) return;
    if (kFlow == kRead) {
      u = load(cu.u + x), v = load(cv.u + x);
      if (kGamma) w = load(cw.u + x);
      return;
    }
    const Wide u0 = load(cu.u + x), v0 = load(cv.u + x), w0 = kGamma ? load(cw.u + x) : one;
    const Wide nx = load(block + kNx * kLanes), ny = load(block + kNy * kLanes);
    Wide residual = madd(ny, v0, madd(nx, u0, load(block + kC * kLanes)));
    if (kGamma) residual = madd(load(block + kNz * kLanes), w0, residual);
    const Wide move = data_step(residual, load(block + kLimit * kLanes));
    u = cu.primal(x, block, block_up, nmadd(move, nx, u0));
    v = cv.primal(x, block, block_up, nmadd(move, ny, v0));
    if (kGamma) w = cw.primal(x, block, block_up, nmadd(move, load(block + kNz * kLanes), w0));
    if (kError) {
      const Wide du = u - u0, dv = v - v0;
      Wide square = madd(dv, dv, du * du);
      if (kGamma) square = madd(w - w0, w - w0, square);
      if (x + kLanes > f.width) square = first_lanes(square, f.width - x);
      total = total + square;
    }
  };
  Wide ux = one, uy = one, vx = one, vy = one, wx = one, wy = one;  // between second and third
  Wide a = one, b = one, c = one;
  const auto gradient = [&](int x) {
    if (!kDual) return;
    cu.gradient(x, u, &ux, &uy);
    cv.gradient(x, v, &vx, &vy);
    a = dual_divisor(ux, uy, slope, one, tiny);
    b = dual_divisor(vx, vy, slope, one, tiny);
    if (kGamma) {
      cw.gradient(x, w, &wx, &wy);
      c = dual_divisor(wx, wy, slope, one, tiny);
    }
  };
  const auto dual = [&](int x, float* up) {
    if (!kDual) return;
    const Wide both = inverse(a * b);  // one for two
    cu.dual(x, up, ux, uy, tau, both * b);
    cv.dual(x, up, vx, vy, tau, both * a);
    if (kGamma) cw.dual(x, up, wx, wy, tau, inverse(c));
  };

  const int last = (f.width - 1) / kLanes * kLanes;
  flow(0);
  if (last > 0) {
    block += kBlock, block_up += kBlock;
    gradient(0);
    flow(kLanes);
    for (int x = 2 * kLanes; x <= last; x += kLanes) {
      block += kBlock, block_up += kBlock;
      dual(x - 2 * kLanes, block_up - 2 * kBlock);
      gradient(x - kLanes);
      flow(x);
    }
    dual(last - kLanes, block_up - kBlock);
  }
  gradient(last);
  dual(last, block_up);
  if (kFlow == kUpdated) {  // no gradient across the right border
    cu.u[f.width] = cu.u[f.width - 1], cv.u[f.width] = cv.u[f.width - 1];
    if (kGamma) cw.u[f.width] = cw.u[f.width - 1];
  }
  return kError ? sum(total) : 0;
}

template <bool kGamma, bool kError>
double step_any_row(const Field<kGamma>& f, int y, Steps steps) {
  if (y == 0) return step_row<kGamma, kError, kUpdated, false>(f, y, steps);
  if (y == f.height) return step_row<kGamma, false, kNone, true>(f, y, steps);
  return step_row<kGamma, kError, kUpdated, true>(f, y, steps);
}

// `count` iterations, by a team that shares the rows out in bands. Towards a border between two
// bands, each iteration of either ends a row before the one before it did; the triangle that is
// left is filled in afterwards. So every value is computed once, from the same values, whatever
// the team. Returns the sum of squared updates of the last iteration, added row by row.
template <bool kGamma>
double iterate(const Field<kGamma>& f, int count, Steps steps, double* row_errors, int team) {
  const int most = f.height / (4 * count);
  team = team < most ? team : (most > 1 ? most : 1);
  if (static_cast<long>(f.width) * f.height * count < 100000) team = 1;  // not worth a wake-up
  const auto border = [&](long b) { return static_cast<int>(f.height * b / team); };
  const auto step = [&](int y, int j) {
    if (j == count - 1) {
      row_errors[y] = step_any_row<kGamma, true>(f, y, steps);
    } else {
      step_any_row<kGamma, false>(f, y, steps);
    }
  };
  const auto begin = [&](int y, int j) {  // the flow of a band's first row alone
    if (j == count - 1) {
      row_errors[y] = step_row<kGamma, true, kUpdated, false>(f, y, steps);
    } else {
      step_row<kGamma, false, kUpdated, false>(f, y, steps);
    }
  };
  parallel_for(team, 1, team, [&](long first, long last) {
    const Flush flush;
    for (long b = first; b < last; ++b) {
      const int top = border(b), bottom = border(b + 1);
      for (int time = 0; time < bottom - top + count; ++time) {
        for (int j = 0; j < count; ++j) {
          const int y = top + time - j;
          const int start = b == 0 ? 0 : top + j, end = b == team - 1 ? bottom + 1 : bottom - j;
          if (y < start || y >= end) continue;
          if (b > 0 && y == start) {
            begin(y, j);
          } else {
            step(y, j);
          }
        }
      }
    }
  });
  parallel_for(team - 1, 1, team, [&](long first, long last) {
    const Flush flush;
    for (long b = first; b < last; ++b) {
      const int middle = border(b + 1);
      for (int j = 0; j < count; ++j) {
        for (int y = middle - j; y < middle + j; ++y) step(y, j);
        step_row<kGamma, false, kRead, true>(f, middle + j, steps);
      }
    }
  });
  double total = 0;
  for (int y = 0; y < f.height; ++y) total += row_errors[y];
  return total;
}

}  // namespace
}  // namespace MME_ISA
}  // namespace mme
