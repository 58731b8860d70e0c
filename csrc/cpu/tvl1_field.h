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

// Whether two iterations go together: it needs more than 16 registers.
template <bool kGamma>
constexpr bool kPairs = !kGamma && kLanes == 16;

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

// A component's dual variables around a pixel: its own, and those that its divergence subtracts.
struct Duals {
  Wide x, left, y, up;
};

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

  MME_WIDE Duals duals(long x, const float* block, const float* block_up) const {
    return {load(qx + x), load(qx + x - 1), load(block + qy), load(block_up + qy)};
  }
  MME_WIDE Wide primal(long x, const Duals& q, Wide v) const {
    const Wide next = primal_step(v, q.x, q.left, q.y, q.up);
    store(u + x, next);
    return next;
  }
  // Gradient of the row above, given the row below it.
  MME_WIDE void gradient(long x, Wide below, Wide* ux, Wide* uy) const {
    const Wide here = once(load(u_up + x));
    *ux = load(u_up + x + 1) - here;
    *uy = kFlow != kNone ? below - here : wide(0.f);
  }
  MME_WIDE void dual(long x, float* block_up, Wide ux, Wide uy, Wide step, Wide factor,
                     Duals* made) const {
    const Wide before = made->x;
    made->x = madd(step, ux, load(qx_up + x)) * factor;
    made->left = shifted(before, made->x);
    made->y = madd(step, uy, load(block_up + qy)) * factor;
    store(qx_up + x, made->x);
    store(block_up + qy, made->y);
  }
};

// Row y of one iteration: flow of y (kFlow: unless y is past the end), dual variables of y - 1
// (kDual: unless y is 0). With kError the squared updates of the flow are summed.
//
// A vector goes through three stages, of which each has some 30 cycles of latency: the flow, the
// gradient with its length, the dual variables. Whoever calls them works them on three vectors at a
// time, so that no stage waits for another: in one go, the scheduler would fill up with what waits.
template <bool kGamma, bool kError, FlowOf kFlow, bool kDual>
struct RowStep {
  using Part = Component<kGamma, kFlow>;
  const Part cu, cv, cw;
  const float* block;
  float* block_up;
  const long width;
  const Wide tau, slope, one, tiny;
  Wide total;
  Wide u, v, w;                          // between the first stage and the second
  Wide ux, uy, vx, vy, wx, wy, a, b, c;  // between the second and the third
  Duals made_u, made_v;                  // what the third has made

  MME_WIDE RowStep(const Field<kGamma>& f, int y, Steps steps)
      : cu(f, y, kU, kQux, kQuy),
        cv(f, y, kV, kQvx, kQvy),
        cw(f, y, kGamma ? kW : kU, kGamma ? kQwx : kQux, kGamma ? kQwy : kQuy),
        block(f.blocks(kFlow != kNone ? y : 0)),
        block_up(f.blocks(y - 1)),
        width(f.width),
        tau(wide(steps.dual)),
        slope(wide(steps.slope)),
        one(wide(1.f)),
        tiny(wide(kTinySquare)),
        total(wide(0.f)) {
    u = v = w = ux = uy = vx = vy = wx = wy = a = b = c = one;
    made_u.x = made_v.x = total;
  }
  // Floats from a row's first block to that of x.
  MME_WIDE static long at(long x) { return x * kBlocked<kGamma>; }

  MME_WIDE void flow(long x) {
    if (kFlow == kNone) return;
    if (kFlow == kRead) {
      u = load(cu.u + x), v = load(cv.u + x);
      if (kGamma) w = load(cw.u + x);
      return;
    }
    const float *here = block + at(x), *up = block_up + at(x);
    flow(x, [&] { return cu.duals(x, here, up); }, [&] { return cv.duals(x, here, up); });
  }
  // The same with dual variables that calls give: not before they are used, for want of registers.
  template <class U, class V>
  MME_WIDE void flow(long x, const U& qu, const V& qv) {
    const float *here = block + at(x), *up = block_up + at(x);
    const Wide u0 = once(load(cu.u + x)), v0 = once(load(cv.u + x)),
               w0 = kGamma ? load(cw.u + x) : one;
    const Wide nx = once(load(here + kNx * kLanes)), ny = once(load(here + kNy * kLanes));
    Wide residual = madd(ny, v0, madd(nx, u0, load(here + kC * kLanes)));
    if (kGamma) residual = madd(load(here + kNz * kLanes), w0, residual);
    const Wide move = data_step(residual, load(here + kLimit * kLanes));
    u = cu.primal(x, qu(), nmadd(move, nx, u0));
    v = cv.primal(x, qv(), nmadd(move, ny, v0));
    if (kGamma) {
      w = cw.primal(x, cw.duals(x, here, up), nmadd(move, load(here + kNz * kLanes), w0));
    }
    if (kError) {
      const Wide du = u - u0, dv = v - v0;
      Wide square = madd(dv, dv, du * du);
      if (kGamma) square = madd(w - w0, w - w0, square);
      if (x + kLanes > width) square = first_lanes(square, static_cast<int>(width - x));
      total = total + square;
    }
  }
  MME_WIDE void gradient(long x) {
    if (!kDual) return;
    cu.gradient(x, u, &ux, &uy);
    cv.gradient(x, v, &vx, &vy);
    a = dual_factor(ux, uy, slope, one, tiny);
    b = dual_factor(vx, vy, slope, one, tiny);
    if (kGamma) {
      cw.gradient(x, w, &wx, &wy);
      c = dual_factor(wx, wy, slope, one, tiny);
    }
  }
  MME_WIDE void dual(long x) {
    if (!kDual) return;
    float* up = block_up + at(x);
    cu.dual(x, up, ux, uy, tau, a, &made_u);
    cv.dual(x, up, vx, vy, tau, b, &made_v);
    Duals unused;
    unused.x = one;
    if (kGamma) cw.dual(x, up, wx, wy, tau, c, &unused);
  }
  MME_WIDE void end() const {
    if (kFlow == kUpdated) {  // no gradient across the right border
      cu.u[width] = cu.u[width - 1], cv.u[width] = cv.u[width - 1];
      if (kGamma) cw.u[width] = cw.u[width - 1];
    }
  }
};

// One row of one iteration. Returns the sum of squared updates, with kError.
template <bool kGamma, bool kError, FlowOf kFlow, bool kDual>
double step_row(const Field<kGamma>& f, int y, Steps steps) {
  RowStep<kGamma, kError, kFlow, kDual> row(f, y, steps);
  const long last = (f.width - 1) / kLanes * kLanes;
  row.flow(0);
  if (last > 0) {
    row.gradient(0);
    row.flow(kLanes);
    for (long x = 2 * kLanes; x <= last; x += kLanes) {
      row.dual(x - 2 * kLanes);
      row.gradient(x - kLanes);
      row.flow(x);
    }
    row.dual(last - kLanes);
  }
  row.gradient(last);
  row.dual(last);
  row.end();
  return kError ? sum(row.total) : 0;
}

// Row y of one iteration and row y - 1 of the next, which takes the dual variables of y - 1 from
// the registers that they were made in: a third of the loads go. Five stages of five vectors.
// Returns the sum for the second one, with kError.
template <bool kError>
double step_pair(const Field<false>& f, int y, Steps steps) {
  RowStep<false, false, kUpdated, true> row(f, y, steps);
  RowStep<false, kError, kUpdated, true> next(f, y - 1, steps);
  const long end = (f.width + kLanes - 1) / kLanes * kLanes, delay = 4 * kLanes;
  Wide before_u = wide(0.f), before_v = wide(0.f);  // dual variables of the vector before
  const auto turn = [&](long x, bool whole) __attribute__((always_inline)) {
    const auto has = [&](int stage) __attribute__((always_inline)) {
      return whole || (x >= stage * kLanes && x - stage * kLanes < end);
    };
    if (has(4)) next.dual(x - 4 * kLanes);
    if (has(3)) next.gradient(x - 3 * kLanes);
    if (has(2)) {
      const long at = x - 2 * kLanes;
      row.dual(at);
      const float* up = next.block_up + next.at(at);
      const auto made = [&](const Duals& q, int qy) __attribute__((always_inline)) {
        return Duals{q.x, q.left, q.y, load(up + qy)};
      };
      next.flow(
          at, [&] { return made(row.made_u, next.cu.qy); },
          [&] { return made(row.made_v, next.cv.qy); });
    }
    if (has(1)) row.gradient(x - kLanes);
    if (has(0)) {
      const float *here = row.block + row.at(x), *up = row.block_up + row.at(x);
      const auto read = [&](const float* qx, int qy, Wide* before) __attribute__((always_inline)) {
        const Wide left = *before;
        *before = load(qx + x);
        return Duals{*before, shifted(left, *before), load(here + qy), load(up + qy)};
      };
      row.flow(
          x, [&] { return read(row.cu.qx, row.cu.qy, &before_u); },
          [&] { return read(row.cv.qx, row.cv.qy, &before_v); });
    }
  };
  long x = 0;
  for (; x < delay; x += kLanes) turn(x, false);
  for (; x < end; x += kLanes) turn(x, true);
  for (; x < end + delay; x += kLanes) turn(x, false);
  row.end();
  next.end();
  return kError ? sum(next.total) : 0;
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
  // Whether row y of iteration j and row y - 1 of the next are whole steps, both in the band.
  const auto pairs = [&](int y, int j, int start, int end) {
    return kPairs<kGamma> && j + 1 < count && y < f.height && y - 1 > start + 1 && y <= end - 1;
  };
  const auto pair = [&](int y, int j) {
    if constexpr (kPairs<kGamma>) {
      if (j + 1 == count - 1) {
        row_errors[y - 1] = step_pair<true>(f, y, steps);
      } else {
        step_pair<false>(f, y, steps);
      }
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
          } else if (pairs(y, j, start, end)) {
            pair(y, j);
            ++j;
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
