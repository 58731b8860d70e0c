// Median-filtered advection: only the windows that tracks touch are filtered. Lanes are tracks.
#include "simd.h"

#include "../common/trajectories.h"
#include "kernels.h"
#include "threads.h"

namespace mme {
namespace MME_ISA {
namespace {

// Tracks that one thread takes at a time: enough to be worth its while, few enough to balance.
constexpr long kRun = 224;

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
  bool seen =
      track<kMedian, kBilinear>(point[0], point[1], end, width, height, clip.bound, flow, write);
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

// Median and clip of nine values, and whether all of them are finite.
MME_LANE Samples median_of(const F (&v)[9], float bound) {
  // A sum of what times zero gives: NaN as soon as one is not finite.
  F sum = _mm256_mul_ps(v[0], set(0.f));
  for (int i = 1; i < 9; ++i) sum = _mm256_add_ps(sum, _mm256_mul_ps(v[i], set(0.f)));
  return {clip_to(median9(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]), bound),
          finite(sum)};
}

// Three neighbours in the row of each of eight tracks: four values a load, then columns from rows.
// The fourth is read, so it must exist, and not used.
MME_LANE void three_columns(const float* plane, const int32_t (&start)[8], F* out) {
  F r[4];
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(plane + start[i])),
                                _mm_loadu_ps(plane + start[i + 4]), 1);
  }
  const F a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpacklo_ps(r[2], r[3]);
  const F c = _mm256_unpackhi_ps(r[0], r[1]), d = _mm256_unpackhi_ps(r[2], r[3]);
  out[0] = _mm256_shuffle_ps(a, b, 0x44);
  out[1] = _mm256_shuffle_ps(a, b, 0xee);
  out[2] = _mm256_shuffle_ps(c, d, 0x44);
}

// A pixel of the frame for each of eight tracks.
struct Place {
  I x, y;
  // Whether all have three neighbours to the right of x - 1 and a row above and below; if so,
  // `corner` is the index of the neighbour above left.
  bool inner;
  alignas(32) int32_t corner[8];

  MME_LANE Place(I column, I row, int width, int height, bool median) {
    x = vmin(vmax(column, set(0)), set(width - 1)), y = vmin(vmax(row, set(0)), set(height - 1));
    const I outer = _mm256_or_si256(
        _mm256_or_si256(_mm256_cmpgt_epi32(set(1), x), _mm256_cmpgt_epi32(x, set(width - 3))),
        _mm256_or_si256(_mm256_cmpgt_epi32(set(1), y), _mm256_cmpgt_epi32(y, set(height - 2))));
    inner = median && _mm256_testz_si256(outer, outer);
    if (!inner) return;
    const I at = _mm256_add_epi32(_mm256_mullo_epi32(y, set(width)), x);
    _mm256_store_si256(reinterpret_cast<I*>(corner), _mm256_sub_epi32(at, set(width + 1)));
    // Eight loads of an index each cost less than taking the vector apart, which compilers prefer.
    asm("" : "+m"(corner));
  }
};

// `filtered` of csrc/common for eight tracks that read one plane.
template <bool kMedian>
MME_LANE Samples filtered8(const float* plane, const Place& at, int width, int height,
                           float bound) {
  const auto row = [&](I y) { return _mm256_mullo_epi32(y, set(width)); };
  if (!kMedian) {
    const F v = gather(plane, _mm256_add_epi32(row(at.y), at.x));
    return {clip_to(v, bound), finite(v)};
  }
  F v[9];
  if (at.inner) {  // rows are loaded whole, which costs less than gathers
    for (int i = 0; i < 3; ++i) three_columns(plane + i * width, at.corner, v + 3 * i);
  } else {
    const I zero = set(0), one = set(1);
    const I columns[3] = {vmax(_mm256_sub_epi32(at.x, one), zero), at.x,
                          vmin(_mm256_add_epi32(at.x, one), set(width - 1))};
    const I rows[3] = {row(vmax(_mm256_sub_epi32(at.y, one), zero)), row(at.y),
                       row(vmin(_mm256_add_epi32(at.y, one), set(height - 1)))};
    for (int i = 0; i < 9; ++i) {
      v[i] = gather(plane, _mm256_add_epi32(rows[i / 3], columns[i % 3]));
    }
  }
  return median_of(v, bound);
}

// Both components of the flow that eight tracks read at (x, y), and whether all of it was finite.
struct Steps {
  F u, v;
  Mask finite;
};

template <bool kMedian, bool kBilinear>
MME_LANE Steps sampled8(const float* across, const float* down, F x, F y, int width, int height,
                        float bound) {
  x = vmin(vmax(x, set(-1e6f)), set(1e6f)), y = vmin(vmax(y, set(-1e6f)), set(1e6f));
  const auto whole = [](F a) { return _mm256_cvttps_epi32(a); };
  const auto place = [&](I i, I j) { return Place(i, j, width, height, kMedian); };
  if (!kBilinear) {
    const F half = set(0.5f);
    const Place at =
        place(whole(floor_of(_mm256_add_ps(x, half))), whole(floor_of(_mm256_add_ps(y, half))));
    const Samples u = filtered8<kMedian>(across, at, width, height, bound);
    const Samples v = filtered8<kMedian>(down, at, width, height, bound);
    return {u.value, v.value, both(u.finite, v.finite)};
  }
  const F left = floor_of(x), up = floor_of(y);
  const F fx = _mm256_sub_ps(x, left), fy = _mm256_sub_ps(y, up);
  const I ix = whole(left), iy = whole(up);
  const I ix1 = _mm256_add_epi32(ix, set(1)), iy1 = _mm256_add_epi32(iy, set(1));
  const Place corners[4] = {place(ix, iy), place(ix1, iy), place(ix, iy1), place(ix1, iy1)};
  const auto mix = [](F p, F q, F t) {
    return _mm256_add_ps(p, _mm256_mul_ps(t, _mm256_sub_ps(q, p)));
  };
  const auto mixed = [&](const float* plane) -> Samples {
    Samples s[4];
    for (int i = 0; i < 4; ++i) {
      s[i] = filtered8<kMedian>(plane, corners[i], width, height, bound);
    }
    return {mix(mix(s[0].value, s[1].value, fx), mix(s[2].value, s[3].value, fx), fy),
            both(both(s[0].finite, s[1].finite), both(s[2].finite, s[3].finite))};
  };
  const Samples u = mixed(across), v = mixed(down);
  return {u.value, v.value, both(u.finite, v.finite)};
}

// Pairs (u, v) of eight tracks, `stride` apart.
MME_LANE void put(float* out, long stride, F u, F v) {
  const F low = _mm256_unpacklo_ps(u, v), high = _mm256_unpackhi_ps(u, v);
  const auto two = [&](int lane, __m128 pairs) {
    _mm_storel_pi(reinterpret_cast<__m64*>(out + lane * stride), pairs);
    _mm_storeh_pi(reinterpret_cast<__m64*>(out + (lane + 1) * stride), pairs);
  };
  two(0, _mm256_castps256_ps128(low)), two(2, _mm256_castps256_ps128(high));
  two(4, _mm256_extractf128_ps(low, 1)), two(6, _mm256_extractf128_ps(high, 1));
}

// A run of 8 * `groups` tracks that follow the same pairs, all of which exist. The steps are the
// outer loop: a track's next step waits for what its last one reads, the other tracks' do not, so
// that the cache misses of a run overlap.
template <bool kMedian, bool kBilinear>
void track_run(const Clip& clip, long r, long groups) {
  const int width = static_cast<int>(clip.n.width), height = static_cast<int>(clip.n.height);
  const long length = clip.n.length;
  const int32_t* pairs = clip.steps + clip.starts[r] * length;
  const F zero = set(0.f), w = to_float(set(width)), h = to_float(set(height));
  const I even = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  F x[kRun / 8], y[kRun / 8];
  Mask alive[kRun / 8], seen[kRun / 8];
  const auto inside8 = [&](F a, F b) {
    return both(both(lt(zero, a), lt(a, w)), both(lt(zero, b), lt(b, h)));
  };
  float* point = clip.points + r * (length + 1) * 2;
  float* move = clip.displacements + r * length * 2;
  for (long g = 0; g < groups; ++g) {
    x[g] = gather(clip.seeds + 2 * (r + 8 * g), even);
    y[g] = gather(clip.seeds + 2 * (r + 8 * g) + 1, even);
    alive[g] = all_lanes(), seen[g] = inside8(x[g], y[g]);
    put(point + 8 * g * (length + 1) * 2, (length + 1) * 2, x[g], y[g]);
  }
  for (long step = 0; step < length; ++step) {
    const float *across = clip.plane(pairs[step], 0), *down = clip.plane(pairs[step], 1);
    for (long g = 0; g < groups; ++g) {
      const Steps read =
          sampled8<kMedian, kBilinear>(across, down, x[g], y[g], width, height, clip.bound);
      alive[g] = both(alive[g], read.finite);
      const F u = where(alive[g], read.u), v = where(alive[g], read.v);
      x[g] = _mm256_add_ps(x[g], u), y[g] = _mm256_add_ps(y[g], v);
      seen[g] = both(seen[g], inside8(x[g], y[g]));
      put(move + (8 * g * length + step) * 2, length * 2, u, v);
      put(point + (8 * g * (length + 1) + step + 1) * 2, (length + 1) * 2, x[g], y[g]);
    }
  }
  for (long g = 0; g < groups; ++g) {
    const int shown = bits(both(alive[g], seen[g]));
    for (int lane = 0; lane < 8; ++lane) clip.visible[r + 8 * g + lane] = (shown >> lane) & 1;
  }
}

// How many tracks from r on can go together, in eights: those that follow the pairs of track r.
long run_length(const Clip& clip, long r, long end) {
  if (clip.n.height * clip.n.width > INT32_MAX) return 0;
  const int32_t start = clip.starts[r];
  for (long step = 0; step < clip.n.length; ++step) {
    if (!clip.plane(clip.steps[start * clip.n.length + step], 0)) return 0;
  }
  long next = r + 1;
  while (next < end && next < r + kRun && clip.starts[next] == start) ++next;
  return (next - r) / 8 * 8;
}

#endif

template <bool kMedian, bool kBilinear>
void track_range(const Clip& clip, long begin, long end) {
  long r = begin;
  while (r < end) {
#if defined(MME_SIMD)
    if (const long run = run_length(clip, r, end)) {
      track_run<kMedian, kBilinear>(clip, r, run / 8), r += run;
      continue;
    }
#endif
    track_one<kMedian, kBilinear>(clip, r), ++r;
  }
}

void tracks(const float* flow, const float* seeds, const int32_t* starts, const int32_t* steps,
            TrackSizes n, TrackOptions options, float* points, float* displacements, bool* visible,
            int threads) {
  const long pieces = (n.tracks + kRun - 1) / kRun;
  parallel_for(n.batch * pieces, 1, threads, [&](long first, long last) {
    for (long piece = first; piece < last; ++piece) {
      const long b = piece / pieces, begin = piece % pieces * kRun;
      const long end = begin + kRun < n.tracks ? begin + kRun : n.tracks;
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
  for (int i = 0; i < 3; ++i)
    row[i] = plane + static_cast<long>(replicate(y + i - 1, height)) * width;
  const auto at = [&](int x) {
    const int l = replicate(x - 1, width), r = replicate(x + 1, width);
    return median9(row[0][l], row[0][x], row[0][r], row[1][l], row[1][x], row[1][r], row[2][l],
                   row[2][x], row[2][r]);
  };
  int x = 0;
#if defined(MME_SIMD)
  if (width >= 10) {
    const auto eight = [&](int left) {
      F v[9];
      for (int i = 0; i < 9; ++i) v[i] = _mm256_loadu_ps(row[i / 3] + left + i % 3 - 1);
      _mm256_storeu_ps(out + left, median9(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]));
    };
    out[0] = at(0);
    for (x = 1; x < width - 9; x += 8) eight(x);
    eight(width - 9);  // may overlap the eight before
    x = width - 1;
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
