// RANSAC of one pair of frames. Hypotheses are the lanes, and matches are added up in their order,
// so that the result does not depend on how many lanes there are.
#pragma once

#include "homography.h"
#include "wide.h"

namespace mme {
namespace MME_ISA {

typedef double Doubles __attribute__((vector_size(sizeof(float) * kLanes)));
typedef float Floats __attribute__((vector_size(sizeof(float) * kLanes)));

template <class T>
struct LanesOf;
template <>
struct LanesOf<double> {
  using Type = Doubles;
};
template <>
struct LanesOf<float> {
  using Type = Floats;
};

// Lanes of T, and how many.
template <class T>
using Lanes = typename LanesOf<T>::Type;
template <class T>
constexpr int kLanesOf = sizeof(Lanes<T>) / sizeof(T);

// Normalised positions in both frames, and what the match is worth.
template <class T>
struct Match {
  T x, y, u, v, worth;
};

// Homographies, entry by entry: that of place k is at h[entry * room + k].
template <class T>
struct Models {
  T* h;
  long room;

  MME_WIDE void read(long k, Lanes<T> to[9]) const {
    for (int e = 0; e < 9; ++e) __builtin_memcpy(&to[e], h + e * room + k, sizeof to[e]);
  }
  MME_WIDE void write(long k, const Lanes<T> from[9]) const {
    for (int e = 0; e < 9; ++e) __builtin_memcpy(h + e * room + k, &from[e], sizeof from[e]);
  }
  template <class S>
  MME_WIDE void copy(long k, const Models<S>& from, long other) const {
    for (int e = 0; e < 9; ++e) h[e * room + k] = static_cast<T>(from.h[e * from.room + other]);
  }
};

// Negative numbers and NaN become 0.
template <class V>
MME_WIDE V positive(V a) {
  return a > V{} ? a : V{};
}

// The squared distance of where homographies take a match; the inverse of its third coordinate.
template <class T>
MME_WIDE Lanes<T> squared_error(const Lanes<T> h[9], const Match<T>& m, Lanes<T>& inverse) {
  inverse = 1 / (h[6] * m.x + h[7] * m.y + h[8]);
  const Lanes<T> du = (h[0] * m.x + h[1] * m.y + h[2]) * inverse - m.u;
  const Lanes<T> dv = (h[3] * m.x + h[4] * m.y + h[5]) * inverse - m.v;
  return du * du + dv * dv;
}

// Gains, and where they are: their sum times the fourth root of the determinant of their
// covariance.
template <class V>
struct Spread {
  V total, x, y, xx, xy, yy;

  template <class T>
  MME_WIDE void add(V gain, T at_x, T at_y) {
    const V across = gain * at_x, down = gain * at_y;
    total += gain, x += across, y += down;
    xx += across * at_x, xy += across * at_y, yy += down * at_y;
  }
  MME_WIDE V score() const {
    const V least = total > V(1e-9) ? total : V(1e-9), mx = x / least, my = y / least;
    const V a = xx / least - mx * mx, c = yy / least - my * my, b = xy / least - mx * my;
    const V area = a * c - b * b;
    return total * static_cast<V>(__builtin_sqrt(__builtin_sqrt(area > 0 ? double(area) : 0.)));
  }
  template <class S>
  MME_WIDE Spread<S> lane(int k) const {
    return {total[k], x[k], y[k], xx[k], xy[k], yy[k]};
  }
};

// MSAC of `many` models times how far what agrees is spread, competition by competition:
// homography.py's _vote.
template <class T>
void vote(const Models<T>& models, long many, const Match<T>* matches, long count,
          const T limits[kCompetitions], T* votes) {
  using V = Lanes<T>;
  T inverse_limits[kCompetitions];
  for (int s = 0; s < kCompetitions; ++s) inverse_limits[s] = 1 / limits[s];
  for (long k = 0; k < many; k += kLanesOf<T>) {
    V h[9];
    Spread<V> spread[kCompetitions] = {};
    models.read(k, h);
    for (long i = 0; i < count; ++i) {
      const Match<T> m = matches[i];
      V inverse;
      const V error = squared_error<T>(h, m, inverse);
      for (int s = 0; s < kCompetitions; ++s) {
        spread[s].add(positive(1 - error * inverse_limits[s]) * m.worth, m.x, m.y);
      }
    }
    for (int s = 0; s < kCompetitions; ++s) {
      for (int lane = 0; lane < kLanesOf<T> && k + lane < many; ++lane) {
        votes[s * many + k + lane] = spread[s].template lane<T>(lane).score();
      }
    }
  }
}

// MSAC of `many` models: homography.py's _score.
inline void score(const Models<double>& models, long many, const Match<double>* matches, long count,
                  double limit, double* scores) {
  const double inverse_limit = 1 / limit;
  for (long k = 0; k < many; k += kLanesOf<double>) {
    Doubles h[9], total = {}, inverse;
    models.read(k, h);
    for (long i = 0; i < count; ++i) {
      const Match<double> m = matches[i];
      total += positive(1 - squared_error<double>(h, m, inverse) * inverse_limit) * m.worth;
    }
    for (int lane = 0; lane < kLanesOf<double> && k + lane < many; ++lane) {
      scores[k + lane] = total[lane];
    }
  }
}

// Solutions of eight equations, given as sums, by elimination without pivots.
MME_WIDE void solve(Doubles a[8][9]) {
  for (int k = 0; k < 8; ++k) {
    const Doubles inverse = 1 / a[k][k];
    for (int j = k; j < 9; ++j) a[k][j] *= inverse;
    for (int i = 0; i < 8; ++i) {
      if (i == k) continue;
      const Doubles factor = a[i][k];
      for (int j = k; j < 9; ++j) a[i][j] -= factor * a[k][j];
    }
  }
}

// Least squares of the matches within sqrt(limit) of `many` models: homography.py's _refined.
inline void refine(const Models<double>& models, long many, const Match<double>* matches,
                   long count, double limit) {
  constexpr int kMonomials = 6;  // xx xy x yy y 1
  constexpr int kPlace[3][3] = {{0, 1, 2}, {1, 3, 4}, {2, 4, 5}};
  const double inverse_limit = 1 / limit;
  for (long k = 0; k < many; k += kLanesOf<double>) {
    Doubles h[9], one[kMonomials] = {}, by_u[kMonomials] = {};
    Doubles by_v[kMonomials] = {}, by_both[kMonomials] = {};
    models.read(k, h);
    for (long i = 0; i < count; ++i) {
      const Match<double> m = matches[i];
      Doubles inverse;
      const Doubles near = positive(1 - squared_error<double>(h, m, inverse) * inverse_limit);
      const Doubles share = near * near * m.worth * (inverse * inverse);
      const Doubles weight = share < 1e300 ? share : Doubles{};  // NaN is not
      const double monomials[] = {m.x * m.x, m.x * m.y, m.x, m.y * m.y, m.y, 1};
      const double both = m.u * m.u + m.v * m.v;
      for (int e = 0; e < kMonomials; ++e) {
        const Doubles part = weight * monomials[e];
        one[e] += part, by_u[e] += part * m.u, by_v[e] += part * m.v, by_both[e] += part * both;
      }
    }
    // Unknowns: h00 h01 h02, h10 h11 h12, h20 h21.
    Doubles a[8][9] = {};
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        const int e = kPlace[i][j];
        a[i][j] = a[3 + i][3 + j] = one[e];
        if (j < 2) a[i][6 + j] = a[6 + j][i] = -by_u[e];
        if (j < 2) a[3 + i][6 + j] = a[6 + j][3 + i] = -by_v[e];
        if (i < 2 && j < 2) a[6 + i][6 + j] = by_both[e];
      }
      a[i][8] = by_u[kPlace[i][2]], a[3 + i][8] = by_v[kPlace[i][2]];
      if (i < 2) a[6 + i][8] = -by_both[kPlace[i][2]];
    }
    solve(a);
    // With too few matches there is no solution: what was there stays.
    Doubles size = {};
    for (int e = 0; e < 8; ++e) size += a[e][8] * 0;
    for (int e = 0; e < 8; ++e) h[e] = size == 0 ? a[e][8] : h[e];
    h[8] = size == 0 ? Doubles{} + 1 : h[8];
    models.write(k, h);
  }
}

// Homographies that take four points p to q: homography.py's _through_four.
MME_WIDE void through_four(const Doubles p[4][2], const Doubles q[4][2], Doubles h[9]) {
  Doubles rows[2][3][3], weights[2][3];
  for (int side = 0; side < 2; ++side) {
    const Doubles(*at)[2] = side == 0 ? p : q;
    for (int i = 0; i < 3; ++i) {
      const Doubles *a = at[(i + 1) % 3], *b = at[(i + 2) % 3];
      rows[side][i][0] = a[1] - b[1], rows[side][i][1] = b[0] - a[0];
      rows[side][i][2] = a[0] * b[1] - a[1] * b[0];
      weights[side][i] =
          at[3][0] * rows[side][i][0] + at[3][1] * rows[side][i][1] + rows[side][i][2];
    }
  }
  const Doubles* a = weights[0];
  const Doubles scale[3] = {weights[1][0] * (a[1] * a[2]), weights[1][1] * (a[0] * a[2]),
                            weights[1][2] * (a[0] * a[1])};
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 3; ++column) {
      Doubles sum = {};
      for (int i = 0; i < 3; ++i) {
        const Doubles part = scale[i] * rows[0][i][column];
        sum += row < 2 ? q[i][row] * part : part;
      }
      h[3 * row + column] = sum;
    }
  }
  const Doubles inverse = 1 / h[8];
  for (int e = 0; e < 9; ++e) h[e] *= inverse;
}

}  // namespace MME_ISA
}  // namespace mme
