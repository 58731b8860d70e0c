// TV-L1 optical flow on CUDA: one launch for all pairs. A team of blocks (a cluster) takes the next
// pair from a counter and solves it from grey levels to flow, meeting at barriers of its own; so
// the stop is decided where the error lies, and a pair that ends early makes room for the next.
// Nothing depends on how many teams there are or run at once.
#include "tvl1_images.h"
#include "tvl1_waves.h"

namespace mme::cuda {
namespace {

struct FlowJob {
  const void* frames;
  const int32_t* pairs;
  const float* initial;
  float* out;
  int64_t* work;
  int32_t* counter;
  float* workspace;
  int64_t channels, count;
  bool is_u8;
  FlowOptions options;
  FlowPlan plan;
};

// Where a solve stands. It lies in shared memory, a copy a thread: the iterations need every
// register.
struct Progress {
  Stop stop;
  int64_t work;
  int32_t pair, level, warps, outer, inner, count, left;
  int8_t flow, dual, errors;  // which of the two is read
};

// Of a block; the rings of data terms are as long as the kernel needs them.
struct Shared {
  Progress progress[kTeamThreads];
  Place places[kTeamWarps];
  float2 rings[1];
};

template <bool kGamma>
class Solver {
 public:
  static constexpr int kFlow = Shape<kGamma>::kFlow, kDeep = Shape<kGamma>::kDeep;

  __device__ __forceinline__ Solver(const Team& team, const FlowJob& job, float* memory,
                                    Shared* shared)
      : team_(team),
        job_(job),
        o_(job.options),
        memory_(memory),
        shared_(shared),
        p_(shared->progress[threadIdx.x]) {}

  __device__ __forceinline__ void solve(int32_t pair) {
    p_.pair = pair, p_.work = 0, p_.flow = p_.dual = p_.errors = 0;
    pyramid();
    for (p_.level = job_.plan.levels - 1; p_.level >= 0; --p_.level) {
      begin();
      for (p_.warps = 0; p_.warps < o_.warps; ++p_.warps) solve_warp();
    }
    const Level& full = job_.plan.level[0];
    const Rows flow = rows(full, job_.plan.at.flow[p_.flow], kFlow);
    float* out = job_.out + 2 * area() * p_.pair;
    team_.for_pixels(full.width, full.height, [&](int x, int y) {
      const int64_t i = static_cast<int64_t>(y) * full.width + x;
      out[i] = flow.at(y, 0)[x], out[area() + i] = flow.at(y, 1)[x];
    });
    if (team_.rank == 0 && threadIdx.x == 0) job_.work[p_.pair] = p_.work;
  }

 private:
  __device__ __forceinline__ int64_t area() const {
    return static_cast<int64_t>(job_.plan.level[0].width) * job_.plan.level[0].height;
  }
  __device__ __forceinline__ Rows rows(const Level& level, int offset, int planes) const {
    return {memory_, offset, level.pitch, planes};
  }

  __device__ __forceinline__ void pyramid() {
    float* planes[] = {memory_ + job_.plan.at.first, memory_ + job_.plan.at.second};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t at = read(job_.pairs + 2 * p_.pair + k) * job_.channels * area();
      if (job_.is_u8) {
        grey(team_, static_cast<const uint8_t*>(job_.frames) + at, job_.channels, area(),
             planes[k]);
      } else {
        grey(team_, static_cast<const float*>(job_.frames) + at, job_.channels, area(), planes[k]);
      }
    }
    const float ratio = 1.f / o_.scale_step;
    for (int s = 1; s < job_.plan.levels; ++s) {
      team_.barrier();
      const Level &from = job_.plan.level[s - 1], &to = job_.plan.level[s];
      const Resize resize{from.width, from.height, from.width, ratio, ratio, 1.f, o_.half};
      team_.for_pixels(to.width, to.height, [&](int x, int y) {
        const int64_t i = to.image + static_cast<int64_t>(y) * to.width + x;
#pragma unroll
        for (int k = 0; k < 2; ++k) planes[k][i] = resize(planes[k] + from.image, x, y);
      });
    }
    team_.barrier();
  }

  // Zero dual variables; flow from the level above, from `initial`, or zero; the second image.
  __device__ __forceinline__ void begin() {
    const int s = p_.level;
    const Level& level = job_.plan.level[s];
    const float* initial = job_.initial ? job_.initial + 2 * area() * p_.pair : nullptr;
    const bool top = s == job_.plan.levels - 1;
    const Level& from = job_.plan.level[top ? 0 : s + 1];
    const float rx = static_cast<float>(from.width) / level.width;
    const float ry = static_cast<float>(from.height) / level.height;
    const float scale = top ? 1.f / rx : 1.f / o_.scale_step;
    const Rows before = rows(from, job_.plan.at.flow[p_.flow], kFlow);
    const int64_t pitch = top ? from.width : from.pitch * kFlow;
    const int64_t plane = top ? static_cast<int64_t>(from.width) * from.height : from.pitch;
    const int given = top ? (initial ? 2 : 0) : kFlow;
    const float* source = top ? initial : before.at(0, 0);
    p_.flow = 1 - p_.flow;
    const Rows flow = rows(level, job_.plan.at.flow[p_.flow], kFlow);
    const Rows dual = rows(level, job_.plan.at.dual[p_.dual], 2 * kFlow);
    team_.for_pixels(level.width, level.height, [&](int x, int y) {
#pragma unroll
      for (int c = 0; c < kFlow; ++c) {
        const Resize resize{from.width, from.height, pitch, rx, ry, c < 2 ? scale : 1.f, o_.half};
        flow.at(y, c)[x] = c < given ? resize(source + c * plane, x, y) : 0.f;
        dual.at(y, 2 * c)[x] = dual.at(y, 2 * c + 1)[x] = 0.f;
      }
    });
    fill_texture(team_, memory_ + job_.plan.at.second + level.image, level.width, level.height,
                 texture());
    team_.barrier();
  }

  __device__ __forceinline__ void solve_warp() {
    const Level& level = job_.plan.level[p_.level];
    const Layout& at = job_.plan.at;
    warp<kGamma>(team_, level, o_, memory_ + at.first + level.image, texture(),
                 rows(level, at.flow[p_.flow], kFlow), rows(level, at.data, Shape<kGamma>::kData));
    team_.barrier();
    p_.stop = Stop(o_, level.width, level.height);
    for (p_.outer = 0; p_.outer < o_.outer && p_.stop.moving; ++p_.outer) {
      if (o_.median > 1) {
        median<kGamma>(team_, level, o_.median, rows(level, at.flow[p_.flow], kFlow),
                       rows(level, at.flow[1 - p_.flow], kFlow));
        p_.flow = 1 - p_.flow;
        team_.barrier();
      }
      for (p_.inner = 0; p_.inner < o_.inner && p_.stop.moving; p_.inner += p_.count) {
        p_.count = p_.stop.wave(p_.outer, p_.inner, o_.inner);
        solve_wave();
      }
    }
  }

  __device__ __forceinline__ void solve_wave() {
    const Layout& at = job_.plan.at;
    // In turn, as a block may still read one sum when another begins the next.
    p_.errors = 1 - p_.errors;
#pragma unroll 1
    for (p_.left = p_.count; p_.left > 0; p_.left -= kDeep) {
      const Pass pass{at.flow[p_.flow],
                      at.dual[p_.dual],
                      at.data,
                      at.flow[1 - p_.flow],
                      at.dual[1 - p_.dual],
                      p_.left <= kDeep ? at.errors[p_.errors] : -1,
                      p_.left < kDeep ? p_.left : kDeep};
      iterate<kGamma>(team_, job_.plan.level[p_.level], pass, job_.plan.steps, memory_,
                      shared_->places, shared_->rings);
      team_.barrier();
      p_.flow = 1 - p_.flow, p_.dual = 1 - p_.dual;
    }
    const Level& level = job_.plan.level[p_.level];
    p_.stop.test(total_error(memory_ + at.errors[p_.errors], level.height * level.strips),
                 p_.count);
    p_.work += static_cast<int64_t>(p_.count) * level.width * level.height;
  }

  __device__ __forceinline__ float4* texture() const {
    return reinterpret_cast<float4*>(memory_ + job_.plan.at.texture);
  }

  const Team& team_;
  const FlowJob& job_;
  const FlowOptions& o_;
  float* memory_;
  Shared* shared_;
  Progress& p_;
};

template <bool kGamma>
__global__ void __launch_bounds__(kTeamThreads, 2)
    flow_kernel(const __grid_constant__ FlowJob job) {
  MME_DYNAMIC_SHARED(Shared, shared);
  const Team team(job.plan.team);
  float* memory =
      job.workspace + static_cast<int64_t>(blockIdx.x) / job.plan.team * job.plan.at.total;
  int32_t* mine = reinterpret_cast<int32_t*>(memory);
  for (;;) {
    if (team.rank == 0 && threadIdx.x == 0) *mine = atomicAdd(job.counter, 1);
    team.barrier();
    const int32_t pair = *mine;
    if (pair >= job.count) return;
    Solver<kGamma>(team, job, memory, shared).solve(pair);
    team.barrier();
  }
}

// ---- Which team, how many, and where things lie
// -----------------------------------------------------

constexpr int64_t kMostWorkspace = int64_t{4} << 30;  // bytes, unless one team needs more
constexpr int kMostBlocks = 8;                        // of a cluster on any device that has them

// Time of one pass over a level, in steps of a tile. Few busy warps wait for themselves rather than
// for each other.
int64_t steps(const Level& level, int bands, int deep, int team) {
  const int64_t tiles = int64_t{level.strips} * bands, warps = int64_t{team} * kTeamWarps;
  const int64_t busy = divide_up(tiles < warps ? tiles : warps, team);
  return divide_up(tiles, warps) * (divide_up(level.height, bands) + 2 * deep) *
         (busy > kTeamWarps / 2 ? busy : kTeamWarps / 2);
}

FlowPlan plan_of(int width, int height, const FlowOptions& o, int team) {
  const LevelSizes sizes(width, height, o);
  const int deep = o.gamma > 0 ? Shape<true>::kDeep : Shape<false>::kDeep;
  const int flow = o.gamma > 0 ? Shape<true>::kFlow : Shape<false>::kFlow;
  const int data = o.gamma > 0 ? Shape<true>::kData : Shape<false>::kData;
  const int stride = kColumns - 2 * deep;
  FlowPlan plan{};
  plan.levels = sizes.levels, plan.team = team, plan.steps = {o.tau, o.tau / o.theta};
  int64_t pixels = 0;  // fewer than fit in the end
  for (int s = 0; s < sizes.levels; ++s) {
    Level& level = plan.level[s];
    level.width = sizes.width[s], level.height = sizes.height[s],
    level.image = static_cast<int>(pixels);
    pixels += int64_t{level.width} * level.height;
    level.strips =
        level.width > kColumns ? static_cast<int>(divide_up(level.width - 2 * deep, stride)) : 1;
    level.pitch = stride * (level.strips - 1) + kColumns;
    level.bands = 1;
    const int most = level.height < 256 ? level.height : 256;
    for (int bands = 2; bands <= most; ++bands) {
      if (steps(level, bands, deep, team) < steps(level, level.bands, deep, team)) {
        level.bands = bands;
      }
    }
  }
  const int64_t area = int64_t{width} * height;
  const int64_t plane = int64_t{plan.level[0].pitch} * height;
  int64_t end = 0;
  const auto place = [&](int* at, int64_t floats) {
    *at = static_cast<int>(end), end += divide_up(floats, 32) * 32;  // cache lines
  };
  int number;
  place(&number, 1);
  place(&plan.at.first, pixels), place(&plan.at.second, pixels);
  place(&plan.at.texture, 4 * area), place(&plan.at.data, data * plane);
  for (int k = 0; k < 2; ++k) {
    place(&plan.at.flow[k], flow * plane), place(&plan.at.dual[k], 2 * flow * plane);
    place(&plan.at.errors[k], int64_t{plan.level[0].strips} * height);
  }
  if (end > INT32_MAX) {
    throw std::invalid_argument("frames of " + std::to_string(width) + "x" +
                                std::to_string(height) + " px are too large");
  }
  plan.at.total = static_cast<int>(end);
  return plan;
}

FlowPlan choose_plan(int width, int height, int64_t count, const FlowOptions& o, int wanted,
                     int device) {
  const DeviceGuard guard(device);
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "optical_flow");
  cudaFuncAttributes attributes{};  // of what was compiled for this device
  check(cudaFuncGetAttributes(&attributes, flow_kernel<false>), "optical_flow");
  const int most = attributes.ptxVersion >= 90 ? kMostBlocks : 1;
  if (wanted > most || wanted < 0) {
    throw std::invalid_argument("a team has " + std::to_string(wanted) +
                                " blocks; must be at most " + std::to_string(most) + " here");
  }
  FlowPlan best{};
  int64_t least = INT64_MAX;
  for (int team = wanted ? wanted : 1; team <= (wanted ? wanted : most); team *= 2) {
    FlowPlan plan = plan_of(width, height, o, team);
    const int64_t bytes = static_cast<int64_t>(sizeof(float)) * plan.at.total;
    int64_t teams = 2 * processors / team;
    if (teams * bytes > kMostWorkspace) teams = kMostWorkspace / bytes;
    if (teams > count) teams = count;
    if (teams < 1) teams = 1;
    plan.teams = static_cast<int>(teams);
    // Two blocks on a multiprocessor take half as long again as one.
    const Level& full = plan.level[0];
    const int deep = o.gamma > 0 ? Shape<true>::kDeep : Shape<false>::kDeep;
    const int64_t cost = divide_up(count, teams) * steps(full, full.bands, deep, team) *
                         (teams * team > processors ? 3 : 2);
    if (cost < least) best = plan, least = cost;
  }
  return best;
}

constexpr int64_t kCounterBytes = 128;

}  // namespace

int64_t optical_flow_workspace(int height, int width, int64_t count, const FlowOptions& options,
                               int team, int device) {
  if (count == 0) return 0;
  const FlowPlan plan = choose_plan(width, height, count, options, team, device);
  return kCounterBytes + static_cast<int64_t>(sizeof(float)) * plan.at.total * plan.teams;
}

void optical_flow(const void* frames, bool is_u8, int64_t channels, int height, int width,
                  const int32_t* pairs, int64_t count, const float* initial,
                  const FlowOptions& options, float* out, int64_t* work, void* workspace, int team,
                  Queue queue) {
  if (count == 0) return;
  if (count > INT32_MAX / 2) {
    throw std::invalid_argument(std::to_string(count) + " pairs; must be fewer than 2^30");
  }
  const FlowJob job{frames,
                    pairs,
                    initial,
                    out,
                    work,
                    static_cast<int32_t*>(workspace),
                    reinterpret_cast<float*>(static_cast<char*>(workspace) + kCounterBytes),
                    channels,
                    count,
                    is_u8,
                    options,
                    choose_plan(width, height, count, options, team, queue.device)};
  {
    const DeviceGuard guard(queue.device);
    check(cudaMemsetAsync(job.counter, 0, sizeof(int32_t), static_cast<cudaStream_t>(queue.stream)),
          "optical_flow");
  }
  const bool gamma = options.gamma > 0;
  const int rows =
      gamma ? Shape<true>::kDeep * Shape<true>::kData : Shape<false>::kDeep * Shape<false>::kData;
  launch_clusters("optical_flow", queue, gamma ? flow_kernel<true> : flow_kernel<false>,
                  int64_t{job.plan.teams} * job.plan.team, job.plan.team, kTeamThreads,
                  sizeof(Shared) + sizeof(float2) * rows * kTeamThreads, job);
}

}  // namespace mme::cuda
