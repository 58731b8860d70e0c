// The kernels of homographies by RANSAC and of the choice among them, a table for each instruction
// set as in kernels.h. mme_targets/backends/batched/homography.py says what they compute.
#pragma once

#include <cstdint>

namespace mme {

constexpr int kCompetitions = 2;
constexpr int kMostRefinements = 8;

// The constants of homography.py by their names there; its lists end with zeros.
struct RansacOptions {
  double threshold, tight, still, left, largest_zoom;
  double scales[kCompetitions], refinements[kMostRefinements], polish[kMostRefinements];
  int hypotheses, sample, best, refined, squares, rounds, enough_matches, enough_inliers;
};

struct HomographyKernels {
  // Candidates [pairs, M, 3, 3] of matches [pairs, room, 2], M = rounds * kCompetitions, of random
  // numbers [hypotheses, 4]. False if memory ran out.
  bool (*candidates)(const float* source, const float* target, const bool* valid, long pairs,
                     long room, long height, long width, const double* numbers,
                     const RansacOptions& options, double* homographies, int64_t* inliers, bool* ok,
                     int threads);
  // Scores [pairs, models] of homographies by frames [pairs, height, width]; -1 where not ok.
  bool (*explained)(const float* first, const float* second, const double* homographies,
                    const bool* ok, long pairs, long models, long height, long width, int step,
                    int samples, float noise, int border, double* scores, int threads);
};

namespace baseline {
extern const HomographyKernels kHomography;
}
namespace avx2 {
extern const HomographyKernels kHomography;
}
namespace avx512 {
extern const HomographyKernels kHomography;
}

}  // namespace mme
