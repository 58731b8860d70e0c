// Median-filtered advection: only the windows that tracks touch are filtered. Lanes are tracks.
#include "simd.h"

#include "../common/trajectories.h"
#include "kernels.h"
#include "threads.h"

namespace mme {
namespace MME_ISA {
namespace {

struct Plane {
  const float* data;
  long width;
  float operator()(int x, int y) const { return data[y * width + x]; }
};

// What one clip's tracks read and write.
struct Clip {
  const float* flow;
  const float* seeds;
  const int32_t *starts, *steps;
  float *points, *displacements;
  bool* visible;
  TrackSizes n;
  float bound;

  // The plane of one component of a pair; a pair that does not exist reads as null.
  const float* plane(int pair, int component) const {
    return pair < 0 || pair >= n.pairs ? nullptr
                                       : flow + (2L * pair + component) * n.height * n.width;
  }
};

template <bool kMedian, bool kBilinear>
void track_one(const Clip& clip, long r) {
  const int width = static_cast<int>(clip.n.width), height = static_cast<int>(clip.n.height);
  const long length = clip.n.length;
  const int32_t* pairs = clip.steps + clip.starts[r] * length;
  float* point = clip.points + r * (length + 1) * 2;
  float* move = clip.displacements + r * length * 2;
  point[0] = clip.seeds[2 * r], point[1] = clip.seeds[2 * r + 1];

  const auto flow = [&](int step, int component) {
    return Plane{clip.plane(pairs[step], component), clip.n.width};
  };
  const auto write = [&](int step, float u, float v, float x, float y) {
    move[2 * step] = u, move[2 * step + 1] = v;
    point[2 * step + 2] = x, point[2 * step + 3] = y;
  };
  // The part with known pairs is tracked; from the first unknown one on the track stands still.
  int end = 0;
  while (end < length && clip.plane(pairs[end], 0)) ++end;
  bool seen = track<kMedian, kBilinear>(point[0], point[1], end, width, height, clip.bound, flow,
                                        write);
  for (int step = end; step < length; ++step) {
    write(step, 0.f, 0.f, point[2 * step], point[2 * step + 1]), seen = false;
  }
  clip.visible[r] = seen;
}

#if defined(MME_SIMD)

struct Samples {
  F value;
  Mask finite;
};

MME_LANE F gather(const float* plane, I index) { return _mm256_i32gather_ps(plane, index, 4); }

MME_LANE Mask finite(F a) {
  const F size = _mm256_andnot_ps(set(-0.f), a);
  return le(size, set(3.402823466e+38f));
}

MME_LANE F clip_to(F value, float bound) { return vmin(vmax(value, set(-bound)), set(bound)); }

MME_LANE F floor_of(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

// `filtered` of csrc/common for eight tracks that read one plane.
template <bool kMedian>
MME_LANE Samples filtered8(const float* plane, I x, I y, int width, int height, float bound) {
  const I zero = set(0), right = set(width - 1), bottom = set(height - 1), one = set(1);
  const I stride = set(width);
  const auto column = [&](I i) { return vmin(vmax(i, zero), right); };
  const auto row = [&](I i) { return _mm256_mullo_epi32(vmin(vmax(i, zero), bottom), stride); };
  x = column(x);
  const I y1 = row(y);
  if (!kMedian) {
    const F v = gather(plane, _mm256_add_epi32(y1, x));
    return {clip_to(v, bound), finite(v)};
  }
  y = vmin(vmax(y, zero), bottom);
  const I x0 = column(_mm256_sub_epi32(x, one)), x2 = column(_mm256_add_epi32(x, one));
  const I y0 = row(_mm256_sub_epi32(y, one)), y2 = row(_mm256_add_epi32(y, one));
  const auto at = [&](I a, I b) { return gather(plane, _mm256_add_epi32(a, b)); };
  const F a = at(y0, x0), b = at(y0, x), c = at(y0, x2);
  const F d = at(y1, x0), e = at(y1, x), f = at(y1, x2);
  const F g = at(y2, x0), h = at(y2, x), i = at(y2, x2);
  // A sum of what times zero gives: NaN as soon as one is not finite.
  const F sum = _mm256_add_ps(
      _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(a, set(0.f)), _mm256_mul_ps(b, set(0.f))),
                                  _mm256_add_ps(_mm256_mul_ps(c, set(0.f)), _mm256_mul_ps(d, set(0.f)))),
                    _mm256_add_ps(_mm256_add_ps(_mm256_mul_ps(e, set(0.f)), _mm256_mul_ps(f, set(0.f))),
                                  _mm256_add_ps(_mm256_mul_ps(g, set(0.f)), _mm256_mul_ps(h, set(0.f))))),
      _mm256_mul_ps(i, set(0.f)));
  return {clip_to(median9(a, b, c, d, e, f, g, h, i), bound), finite(sum)};
}

template <bool kMedian, bool kBilinear>
MME_LANE Samples sampled8(const float* plane, F x, F y, int width, int height, float bound) {
  x = vmin(vmax(x, set(-1e6f)), set(1e6f)), y = vmin(vmax(y, set(-1e6f)), set(1e6f));
  const auto whole = [](F a) { return _mm256_cvttps_epi32(a); };
  if (!kBilinear) {
    const F half = set(0.5f);
    return filtered8<kMedian>(plane, whole(floor_of(_mm256_add_ps(x, half))),
                              whole(floor_of(_mm256_add_ps(y, half))), width, height, bound);
  }
  const F left = floor_of(x), up = floor_of(y);
  const I ix = whole(left), iy = whole(up);
  const I ix1 = _mm256_add_epi32(ix, set(1)), iy1 = _mm256_add_epi32(iy, set(1));
  const Samples a = filtered8<kMedian>(plane, ix, iy, width, height, bound);
  const Samples b = filtered8<kMedian>(plane, ix1, iy, width, height, bound);
  const Samples c = filtered8<kMedian>(plane, ix, iy1, width, height, bound);
  const Samples d = filtered8<kMedian>(plane, ix1, iy1, width, height, bound);
  const F fx = _mm256_sub_ps(x, left), fy = _mm256_sub_ps(y, up);
  const auto mix = [](F p, F q, F t) {
    return _mm256_add_ps(p, _mm256_mul_ps(t, _mm256_sub_ps(q, p)));
  };
  return {mix(mix(a.value, b.value, fx), mix(c.value, d.value, fx), fy),
          both(both(a.finite, b.finite), both(c.finite, d.finite))};
}

// Eight tracks that follow the same pairs, all of which exist.
template <bool kMedian, bool kBilinear>
void track_eight(const Clip& clip, long r) {
  const int width = static_cast<int>(clip.n.width), height = static_cast<int>(clip.n.height);
  const long length = clip.n.length;
  const int32_t* pairs = clip.steps + clip.starts[r] * length;
  const F zero = set(0.f), w = to_float(set(width)), h = to_float(set(height));
  const I even = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  F x = gather(clip.seeds + 2 * r, even), y = gather(clip.seeds + 2 * r + 1, even);

  alignas(32) float column[8], line[8];
  const auto put = [&](float* out, long stride, F u, F v) {
    _mm256_store_ps(column, u), _mm256_store_ps(line, v);
    for (int lane = 0; lane < 8; ++lane) {
      out[lane * stride] = column[lane], out[lane * stride + 1] = line[lane];
    }
  };
  const auto inside8 = [&] {
    return both(both(lt(zero, x), lt(x, w)), both(lt(zero, y), lt(y, h)));
  };
  float* point = clip.points + r * (length + 1) * 2;
  float* move = clip.displacements + r * length * 2;
  put(point, (length + 1) * 2, x, y);
  Mask alive = all_lanes(), seen = inside8();
  for (long step = 0; step < length; ++step) {
    const Samples dx = sampled8<kMedian, kBilinear>(clip.plane(pairs[step], 0), x, y, width,
                                                    height, clip.bound);
    const Samples dy = sampled8<kMedian, kBilinear>(clip.plane(pairs[step], 1), x, y, width,
                                                    height, clip.bound);
    alive = both(alive, both(dx.finite, dy.finite));
    const F u = where(alive, dx.value), v = where(alive, dy.value);
    x = _mm256_add_ps(x, u), y = _mm256_add_ps(y, v);
    seen = both(seen, inside8());
    put(move + 2 * step, length * 2, u, v);
    put(point + 2 * step + 2, (length + 1) * 2, x, y);
  }
  const int shown = bits(both(alive, seen));
  for (int lane = 0; lane < 8; ++lane) clip.visible[r + lane] = (shown >> lane) & 1;
}

// Whether eight tracks from r on can go together.
bool together(const Clip& clip, long r, long end) {
  if (r + 8 > end || clip.n.height * clip.n.width > INT32_MAX) return false;
  const int32_t start = clip.starts[r];
  for (int lane = 1; lane < 8; ++lane) {
    if (clip.starts[r + lane] != start) return false;
  }
  for (long step = 0; step < clip.n.length; ++step) {
    if (!clip.plane(clip.steps[start * clip.n.length + step], 0)) return false;
  }
  return true;
}

#endif

template <bool kMedian, bool kBilinear>
void track_range(const Clip& clip, long begin, long end) {
  long r = begin;
  while (r < end) {
#if defined(MME_SIMD)
    if (together(clip, r, end)) {
      track_eight<kMedian, kBilinear>(clip, r), r += 8;
      continue;
    }
#endif
    track_one<kMedian, kBilinear>(clip, r), ++r;
  }
}

void tracks(const float* flow, const float* seeds, const int32_t* starts, const int32_t* steps,
            TrackSizes n, TrackOptions options, float* points, float* displacements, bool* visible,
            int threads) {
  // A piece: enough tracks to be worth a thread's while, few enough to balance.
  constexpr long kPiece = 224;
  const long pieces = (n.tracks + kPiece - 1) / kPiece;
  parallel_for(n.batch * pieces, 1, threads, [&](long first, long last) {
    for (long piece = first; piece < last; ++piece) {
      const long b = piece / pieces, begin = piece % pieces * kPiece;
      const long end = begin + kPiece < n.tracks ? begin + kPiece : n.tracks;
      const long row = n.seed_batches > 1 ? b : 0;
      const Clip clip{flow + b * n.pairs * 2 * n.height * n.width,
                      seeds + row * n.tracks * 2,
                      starts + row * n.tracks,
                      steps,
                      points + b * n.tracks * (n.length + 1) * 2,
                      displacements + b * n.tracks * n.length * 2,
                      visible + b * n.tracks,
                      n,
                      options.bound};
      if (options.median) {
        options.bilinear ? track_range<true, true>(clip, begin, end)
                         : track_range<true, false>(clip, begin, end);
      } else {
        options.bilinear ? track_range<false, true>(clip, begin, end)
                         : track_range<false, false>(clip, begin, end);
      }
    }
  });
}

// One row of the filter: the interior in lanes, the two ends by the scalar formula.
void median_row(const float* plane, int y, int width, int height, float* out) {
  const float* row[3];
  for (int i = 0; i < 3; ++i) row[i] = plane + static_cast<long>(replicate(y + i - 1, height)) * width;
  const auto at = [&](int x) {
    const int l = replicate(x - 1, width), r = replicate(x + 1, width);
    return median9(row[0][l], row[0][x], row[0][r], row[1][l], row[1][x], row[1][r], row[2][l],
                   row[2][x], row[2][r]);
  };
  int x = 0;
#if defined(MME_SIMD)
  out[x] = at(x), ++x;
  for (; x + 8 < width; x += 8) {
    F v[9];
    for (int i = 0; i < 9; ++i) v[i] = _mm256_loadu_ps(row[i / 3] + x + i % 3 - 1);
    _mm256_storeu_ps(out + x,
                     median9(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]));
  }
#endif
  for (; x < width; ++x) out[x] = at(x);
}

void median_filter(const float* planes, long count, long height, long width, float* out,
                   int threads) {
  parallel_for(count * height, 32, threads, [&](long first, long last) {
    for (long line = first; line < last; ++line) {
      const long m = line / height, y = line % height;
      median_row(planes + m * height * width, static_cast<int>(y), static_cast<int>(width),
                 static_cast<int>(height), out + line * width);
    }
  });
}

}  // namespace

extern const Kernels kTrajectories;
const Kernels kTrajectories{nullptr, tracks, median_filter, nullptr, nullptr, nullptr, nullptr};

}  // namespace MME_ISA
}  // namespace mme
