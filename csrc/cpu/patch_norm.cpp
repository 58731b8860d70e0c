// Patch normalisation. Eight partial sums a group, so that the compiler can use lanes and the
// result does not depend on how many there are.
#include "../common/patch_norm.h"

#include "kernels.h"
#include "threads.h"

namespace mme {
namespace MME_ISA {
namespace {

constexpr int kParts = 8;

// Sum of term(i) over [0, count), by eight partial sums added in order.
template <class Term>
inline __attribute__((always_inline)) float sum(long count, const Term& term) {
  float part[kParts] = {0.f};
  long i = 0;
  for (; i + kParts <= count; i += kParts) {
    for (int j = 0; j < kParts; ++j) part[j] += term(i + j);
  }
  for (; i < count; ++i) part[i % kParts] += term(i);
  float total = 0.f;
  for (int j = 0; j < kParts; ++j) total += part[j];
  return total;
}

void whole_patch(const float* z, long count, float eps, float* out, float* mean, float* std) {
  const float pivot = z[0];
  const float shift =
      sum(count, [=](long i) { return relative(z[i], pivot); }) / static_cast<float>(count);
  const float squares =
      sum(count, [=](long i) { return squared_deviation(relative(z[i], pivot), shift); });
  const float spread = deviation(squares, static_cast<int>(count), eps);
  for (long i = 0; i < count; ++i) out[i] = normalised(relative(z[i], pivot), shift, spread);
  *mean = add(pivot, shift), *std = spread;
}

// Each feature over the tracks; features are the lanes.
void each_coordinate(const float* z, long tracks, long features, float eps, float* out, float* mean,
                     float* std) {
  for (long f = 0; f < features; ++f) mean[f] = 0.f, std[f] = 0.f;
  for (long k = 1; k < tracks; ++k) {
    for (long f = 0; f < features; ++f) mean[f] += relative(z[k * features + f], z[f]);
  }
  for (long f = 0; f < features; ++f) mean[f] /= static_cast<float>(tracks);
  for (long k = 0; k < tracks; ++k) {
    for (long f = 0; f < features; ++f) {
      std[f] += squared_deviation(relative(z[k * features + f], z[f]), mean[f]);
    }
  }
  for (long f = 0; f < features; ++f) std[f] = deviation(std[f], static_cast<int>(tracks), eps);
  for (long k = 0; k < tracks; ++k) {
    for (long f = 0; f < features; ++f) {
      const long i = k * features + f;
      out[i] = normalised(relative(z[i], z[f]), mean[f], std[f]);
    }
  }
  for (long f = 0; f < features; ++f) mean[f] = add(z[f], mean[f]);
}

void patch_norm(const float* values, long count, long tracks, long features, bool coordinate,
                float eps, float* out, float* mean, float* std, int threads) {
  const long size = tracks * features;
  parallel_for(count, 16, threads, [=](long first, long last) {
    for (long m = first; m < last; ++m) {
      if (coordinate) {
        each_coordinate(values + m * size, tracks, features, eps, out + m * size,
                        mean + m * features, std + m * features);
      } else {
        whole_patch(values + m * size, size, eps, out + m * size, mean + m, std + m);
      }
    }
  });
}

}  // namespace

extern const Kernels kPatchNorm;
const Kernels kPatchNorm{nullptr, nullptr, nullptr, nullptr, nullptr, patch_norm, nullptr};

}  // namespace MME_ISA
}  // namespace mme
