// TV-L1 optical flow of pairs of frames: pyramid, then from its top level down warps, medians and
// waves of iterations. Threads share pairs out; when there are fewer pairs than threads, they share
// the rows and iterations of each.
#include <cstdlib>
#include <ctime>

#include "tvl1_images.h"

namespace mme {
namespace MME_ISA {
namespace {

// Adds the time it lives to a field of flow_times; costs a comparison when these are off.
class Timed {
 public:
  explicit Timed(int64_t* to) : to_(flow_times.on ? to : nullptr), begin_(to_ ? now() : 0) {}
  ~Timed() {
    if (to_) __atomic_fetch_add(to_, now() - begin_, __ATOMIC_RELAXED);
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  static int64_t now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
  }
  int64_t* const to_;
  const int64_t begin_;
};

struct Pyramid : LevelSizes {
  long offset[kMaxLevels + 1];  // of a level's plane

  Pyramid(int w, int h, const FlowOptions& options) : LevelSizes(w, h, options) {
    offset[0] = 0;
    for (int s = 0; s < levels; ++s) {
      offset[s + 1] = offset[s] + static_cast<long>(width[s]) * height[s] + kSlack;
    }
  }
  void build(float* planes, const FlowOptions& options, float* buffer) const {
    const float ratio = 1.f / options.scale_step;
    for (int s = 1; s < levels; ++s) {
      resize(planes + offset[s - 1], width[s - 1], height[s - 1], planes + offset[s], width[s],
             height[s], width[s], ratio, ratio, options.half, 1.f, buffer);
    }
  }
};

// One thread's memory, for pairs of one size.
struct Memory {
  float *first, *second, *texture, *field, *copy, *buffer, *coarse;
  double* row_errors;
  void* all;

  Memory(const Pyramid& p, bool gamma) {
    const int w = p.width[0], h = p.height[0];
    const long sizes[] = {
        p.offset[p.levels],    p.offset[p.levels],
        Texture::floats(w, h), gamma ? Field<true>::floats(w, h) : Field<false>::floats(w, h),
        median_floats(w, h),   3L * w + kSlack,
        3L * w * h + kSlack};
    float** places[] = {&first, &second, &texture, &field, &copy, &buffer, &coarse};
    long total = 2L * (h + 1) + 32;
    for (long size : sizes) total += size + 32;
    all = std::malloc(total * sizeof(float));
    if (all == nullptr) return;
    float* at = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(all) + 63) / 64 * 64);
    for (int i = 0; i < 7; ++i) {
      *places[i] = at;
      at += (sizes[i] + 15) / 16 * 16;
    }
    row_errors = reinterpret_cast<double*>(at);
  }
  ~Memory() { std::free(all); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};

class Solver {
 public:
  Solver(const Pyramid& pyramid, const FlowOptions& options, const Memory& memory, int team)
      : p_(pyramid), o_(options), m_(memory), team_(team) {}

  // Grey planes at level 0 lie in memory; `initial` [2, H, W] or null.
  template <bool kGamma>
  long solve(const float* initial, float* out) {
    p_.build(m_.first, o_, m_.buffer);
    p_.build(m_.second, o_, m_.buffer);
    long work = 0;
    for (int s = p_.levels - 1; s >= 0; --s) {
      const Field<kGamma> f(m_.field, p_.width[s], p_.height[s]);
      begin<kGamma>(f, s, initial);
      work += level<kGamma>(f, s);
      end(f, s == 0 ? out : m_.coarse, kGamma && s > 0);
    }
    return work;
  }

 private:
  template <bool kGamma>
  long level(const Field<kGamma>& f, int s) {
    const Texture texture{m_.texture, f.width, f.height};
    {
      const Timed timed(&flow_times.warps);
      texture.fill(m_.second + p_.offset[s], team_);
    }
    const Steps steps{o_.tau, o_.tau / o_.theta};
    long work = 0;
    for (int warp = 0; warp < o_.warps; ++warp) {
      linearise(f, m_.first + p_.offset[s], texture);
      Stop stop(o_, f.width, f.height);
      for (int outer = 0; outer < o_.outer && stop.moving; ++outer) {
        if (o_.median > 1) {
          const Timed timed(&flow_times.medians);
          median_flow(f, o_.median, m_.copy, team_);
        }
        const Timed timed(&flow_times.iterations);
        for (int inner = 0; inner < o_.inner && stop.moving;) {
          const int count = stop.wave(outer, inner, o_.inner);
          stop.test(iterate<kGamma>(f, count, steps, m_.row_errors, team_), count);
          inner += count;
          work += static_cast<long>(count) * f.width * f.height;
        }
      }
    }
    return work;
  }

  template <bool kGamma>
  void linearise(const Field<kGamma>& f, const float* first_image, const Texture& texture) {
    const Timed timed(&flow_times.warps);
    parallel_for(f.height, 16, team_, [&](long first, long last) {
      const Flush flush;
      for (long y = first; y < last; ++y) {
        warp_row<kGamma>(f, static_cast<int>(y), first_image, texture, o_);
      }
    });
  }

  // Zero dual variables; flow from the level above, from `initial`, or zero.
  template <bool kGamma>
  void begin(const Field<kGamma>& f, int s, const float* initial) {
    __builtin_memset(f.data, 0, sizeof(float) * f.floats(f.width, f.height));
    const bool top = s == p_.levels - 1;
    if (top && initial == nullptr) return;
    const int from = top ? 0 : s + 1;
    const float* in = top ? initial : m_.coarse;
    const int w = p_.width[from], h = p_.height[from];
    const float rx = static_cast<float>(w) / f.width, ry = static_cast<float>(h) / f.height;
    const float scale = top ? 1.f / rx : 1.f / o_.scale_step;
    const int planes[] = {kU, kV, kW};
    for (int k = 0; k < (kGamma && !top ? 3 : 2); ++k) {
      resize(in + k * static_cast<long>(w) * h, w, h, f.row(0, planes[k]), f.width, f.height,
             f.pitch, rx, ry, o_.half, k < 2 ? scale : 1.f, m_.buffer);
      for (int y = 0; y < f.height; ++y) {
        float* row = f.row(y, planes[k]);
        row[f.width] = row[f.width - 1];
      }
    }
  }

  template <bool kGamma>
  void end(const Field<kGamma>& f, float* out, bool illumination) {
    const int planes[] = {kU, kV, kW};
    for (int k = 0; k < (illumination ? 3 : 2); ++k) {
      for (int y = 0; y < f.height; ++y, out += f.width) {
        __builtin_memcpy(out, f.row(y, planes[k]), sizeof(float) * f.width);
      }
    }
  }

  const Pyramid& p_;
  const FlowOptions& o_;
  const Memory& m_;
  const int team_;
};

bool flow(const void* frames, bool is_u8, long channels, long height, long width,
          const int32_t* pairs, long count, const float* initial, FlowOptions options, float* out,
          int64_t* work, int threads) {
  const Pyramid pyramid(static_cast<int>(width), static_cast<int>(height), options);
  const bool gamma = options.gamma > 0;
  const long area = width * height;
  const bool shared = count >= threads;  // threads share pairs out, not rows
  const int team = shared ? 1 : threads;
  const long workers = shared ? threads : 1;
  long next = 0;
  bool enough_memory = true;
  parallel_for(workers, 1, threads, [&](long first, long last) {
    const Flush flush;
    for (long worker = first; worker < last; ++worker) {
      const Memory memory(pyramid, gamma);
      if (memory.all == nullptr) {
        __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
        return;
      }
      long i;
      while ((i = __atomic_fetch_add(&next, 1L, __ATOMIC_RELAXED)) < count) {
        const Timed timed(&flow_times.whole);
        for (int k = 0; k < 2; ++k) {
          const long at = pairs[2 * i + k] * channels * area;
          float* plane = k ? memory.second : memory.first;
          if (is_u8) {
            grey(static_cast<const uint8_t*>(frames) + at, static_cast<int>(channels), area, plane);
          } else {
            grey(static_cast<const float*>(frames) + at, static_cast<int>(channels), area, plane);
          }
        }
        Solver solver(pyramid, options, memory, team);
        const float* start = initial ? initial + 2 * area * i : nullptr;
        float* to = out + 2 * area * i;
        work[i] = gamma ? solver.solve<true>(start, to) : solver.solve<false>(start, to);
        if (flow_times.on) __atomic_fetch_add(&flow_times.work, work[i], __ATOMIC_RELAXED);
      }
    }
  });
  return enough_memory;
}

}  // namespace

extern const Kernels kOpticalFlow;
const Kernels kOpticalFlow{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, flow};

}  // namespace MME_ISA
}  // namespace mme
