// Homographies by RANSAC, and how much of two frames each of them explains. Threads share the pairs
// out.
#include "compare_frames.h"
#include "ransac.h"
#include "threads.h"

#include <cstdlib>

namespace mme {
namespace MME_ISA {
namespace {

constexpr long kMost = 16;  // lanes of anything

long rounded_up(long count) { return (count + kMost - 1) / kMost * kMost; }

// What is allocated together, taken part by part.
struct Memory {
  char* all;
  long at = 0;

  explicit Memory(long bytes) : all(static_cast<char*>(std::malloc(bytes))) {}
  Memory(const Memory&) = delete;
  ~Memory() { std::free(all); }
  template <class T>
  T* take(long count) {
    T* part = reinterpret_cast<T*>(all + at);
    at += (count * static_cast<long>(sizeof(T)) + 63) / 64 * 64;
    return part;
  }
};

// A pair's frame and its normalised coordinates.
struct Frame {
  double unit, middle_x, middle_y;

  Frame(long height, long width)
      : unit((height > width ? height : width) / 2.),
        middle_x((width - 1) / 2.),
        middle_y((height - 1) / 2.) {}
};

// Whether a homography neither folds nor crushes the frame: homography.py's plausible.
bool plausible(const Models<double>& models, long k, const Frame& frame, double largest_zoom) {
  double h[9];
  for (int e = 0; e < 9; ++e) h[e] = models.h[e * models.room + k];
  const double area = h[0] * (h[4] * h[8] - h[5] * h[7]) + h[1] * (h[5] * h[6] - h[3] * h[8]) +
                      h[2] * (h[3] * h[7] - h[4] * h[6]);
  const double most = largest_zoom * largest_zoom;
  const double x = frame.middle_x / frame.unit, y = frame.middle_y / frame.unit;
  bool sane = true;
  for (int corner = 0; corner < 4; ++corner) {
    const double w = h[6] * (corner & 1 ? x : -x) + h[7] * (corner & 2 ? y : -y) + h[8];
    const double scale = area / (w * w * w);
    sane = sane && w > 1e-6 && scale >= 1 / most && scale <= most;  // false for NaN
  }
  return sane;
}

// The places of the `many` largest values, the first of equal ones first.
template <class T>
void largest(const T* values, long count, long many, long* places) {
  long held = 0;
  for (long i = 0; i < count; ++i) {
    if (held == many && !(values[i] > values[places[many - 1]])) continue;
    long at = held < many ? held++ : many - 1;
    for (; at > 0 && values[i] > values[places[at - 1]]; --at) places[at] = places[at - 1];
    places[at] = i;
  }
}

// What matches are worth: 1 over how many their square of the frame holds.
void weigh(Match<double>* matches, long count, int squares, int* held) {
  const auto square = [=](const Match<double>& m) {
    const auto place = [=](double at) {
      const long k = static_cast<long>(__builtin_floor((at + 1) * (squares / 2.)));
      return k < 0 ? 0 : k < squares ? k : squares - 1;
    };
    return place(m.y) * squares + place(m.x);
  };
  for (int k = 0; k < squares * squares; ++k) held[k] = 0;
  for (long i = 0; i < count; ++i) ++held[square(matches[i])];
  for (long i = 0; i < count; ++i) matches[i].worth = 1. / held[square(matches[i])];
}

struct Ransac {
  const RansacOptions& o;
  const double* numbers;  // [hypotheses, 4] from 0 to below 1
  Frame frame;
  long room, chosen;
  Memory memory;
  Match<double>* matches;
  Match<float>* sample;
  Models<double> models, some, best;
  Models<float> rough;
  float* rough_votes;
  double *votes, *scores, *highest;
  long* places;
  int* held;
  bool* left;

  static long bytes(long room, long hypotheses, long chosen, const RansacOptions& o) {
    return room * (sizeof(Match<double>) + 1) + o.sample * sizeof(Match<float>) +
           hypotheses * (9 * 12 + 4 * kCompetitions) + chosen * (18 * 8 + 32 * kCompetitions) +
           4L * o.squares * o.squares + 64 * 16;
  }

  Ransac(const RansacOptions& options, const double* drawn, long height, long width, long count)
      : o(options),
        numbers(drawn),
        frame(height, width),
        room(count),
        chosen(rounded_up(kCompetitions * o.best)),
        memory(bytes(room, rounded_up(o.hypotheses), chosen, o)) {
    if (memory.all == nullptr) return;
    const long hypotheses = rounded_up(o.hypotheses);
    matches = memory.take<Match<double>>(room), left = memory.take<bool>(room);
    sample = memory.take<Match<float>>(o.sample);
    models = {memory.take<double>(9 * hypotheses), hypotheses};
    rough = {memory.take<float>(9 * hypotheses), hypotheses};
    rough_votes = memory.take<float>(kCompetitions * o.hypotheses);
    some = {memory.take<double>(9 * chosen), chosen};
    best = {memory.take<double>(9 * chosen), chosen};
    votes = memory.take<double>(kCompetitions * chosen);
    scores = memory.take<double>(chosen), highest = memory.take<double>(chosen);
    places = memory.take<long>(chosen), held = memory.take<int>(o.squares * o.squares);
  }

  bool plausible(const Models<double>& from, long k) const {
    return MME_ISA::plausible(from, k, frame, o.largest_zoom);
  }

  void hypothesise(long count) {
    for (long k = 0; k < o.hypotheses; k += kLanesOf<double>) {
      Doubles p[4][2] = {}, q[4][2] = {}, h[9];
      for (int lane = 0; lane < kLanesOf<double> && k + lane < o.hypotheses; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const Match<double>& m = matches[static_cast<long>(numbers[4 * (k + lane) + i] * count)];
          p[i][0][lane] = m.x, p[i][1][lane] = m.y, q[i][0][lane] = m.u, q[i][1][lane] = m.v;
        }
      }
      through_four(p, q, h);
      models.write(k, h);
    }
  }

  // The best of each competition on a part of the matches, then of these on all: into `some`.
  void compete(long count, double limit) {
    for (int i = 0; i < o.sample; ++i) {
      const Match<double>& m = matches[static_cast<long>(numbers[i] * count)];
      sample[i] = {static_cast<float>(m.x), static_cast<float>(m.y), static_cast<float>(m.u),
                   static_cast<float>(m.v), static_cast<float>(m.worth)};
    }
    for (long i = 0; i < 9 * models.room; ++i) rough.h[i] = static_cast<float>(models.h[i]);
    float limits[kCompetitions];
    for (int s = 0; s < kCompetitions; ++s) {
      limits[s] = static_cast<float>(limit * o.scales[s] * o.scales[s]);
    }
    vote(rough, o.hypotheses, sample, o.sample, limits, rough_votes);
    for (long k = 0; k < o.hypotheses; ++k) {
      if (plausible(models, k)) continue;
      for (int s = 0; s < kCompetitions; ++s) rough_votes[s * o.hypotheses + k] = -1;
    }
    for (int s = 0; s < kCompetitions; ++s) {
      largest(rough_votes + s * o.hypotheses, o.hypotheses, o.best, places + s * o.best);
    }
    const long many = kCompetitions * o.best;
    for (long k = 0; k < many; ++k) some.copy(k, models, places[k]);
    vote_all(some, many, count, limit);
    for (int s = 0; s < kCompetitions; ++s) {
      const long own = static_cast<long>(s) * o.best;
      largest(votes + s * many + own, o.best, o.refined, places);
      for (long k = 0; k < o.refined; ++k) best.copy(s * o.refined + k, some, own + places[k]);
    }
    for (long k = 0; k < kCompetitions * o.refined; ++k) some.copy(k, best, k);
  }

  void vote_all(const Models<double>& from, long many, long count, double limit) {
    double limits[kCompetitions];
    for (int s = 0; s < kCompetitions; ++s) limits[s] = limit * o.scales[s] * o.scales[s];
    vote(from, many, matches, count, limits, votes);
    for (long k = 0; k < many; ++k) {
      if (plausible(from, k)) continue;
      for (int s = 0; s < kCompetitions; ++s) votes[s * many + k] = -1;
    }
  }

  void score_all(const Models<double>& from, long many, long count, double limit, double* to) {
    score(from, many, matches, count, limit, to);
    for (long k = 0; k < many; ++k) {
      if (!plausible(from, k)) to[k] = -1;
    }
  }

  // One round: the best homographies of the first `count` matches, of each competition, into
  // `best`.
  void find(long count) {
    const double limit = (o.threshold / frame.unit) * (o.threshold / frame.unit);
    weigh(matches, count, o.squares, held);
    hypothesise(count);
    compete(count, limit);
    const long many = kCompetitions * o.refined;
    score_all(some, many, count, limit, highest);
    for (int i = 0; i < kMostRefinements && o.refinements[i] > 0; ++i) {
      refine(some, many, matches, count, limit * o.refinements[i] * o.refinements[i]);
      score_all(some, many, count, limit, scores);
      for (long k = 0; k < many; ++k) {
        if (!(scores[k] > highest[k])) continue;
        best.copy(k, some, k), highest[k] = scores[k];
      }
    }
    vote_all(best, many, count, limit);
    double most[kCompetitions];
    for (int s = 0; s < kCompetitions; ++s) {
      long winner = 0;
      largest(votes + s * many, many, 1, &winner);
      some.copy(s, best, winner), most[s] = highest[winner];
    }
    // What agrees to a part of the threshold knows better, if that is most of it.
    for (int s = 0; s < kCompetitions; ++s) best.copy(s, some, s), highest[s] = most[s];
    for (int i = 0; i < kMostRefinements && o.polish[i] > 0; ++i) {
      refine(some, kCompetitions, matches, count, limit * o.polish[i] * o.polish[i]);
    }
    score_all(some, kCompetitions, count, limit * o.tight * o.tight, scores);
    for (int s = 0; s < kCompetitions; ++s) {
      if (scores[s] >= o.still * highest[s]) best.copy(s, some, s);
    }
  }

  // The k-th of `best` in pixels, its last entry 1.
  void pixels(long k, double out[9]) const {
    double h[3][3], w[3][3];
    for (int e = 0; e < 9; ++e) h[e / 3][e % 3] = best.h[e * best.room + k];
    for (int row = 0; row < 3; ++row) {
      const double a = h[row][0] / frame.unit, b = h[row][1] / frame.unit;
      w[row][0] = a, w[row][1] = b;
      w[row][2] = h[row][2] - a * frame.middle_x - b * frame.middle_y;
    }
    for (int column = 0; column < 3; ++column) {
      w[0][column] = frame.unit * w[0][column] + frame.middle_x * w[2][column];
      w[1][column] = frame.unit * w[1][column] + frame.middle_y * w[2][column];
    }
    for (int e = 0; e < 9; ++e) out[e] = w[e / 3][e % 3] / w[2][2];
  }

  // All candidates of a pair.
  void pair(const float* source, const float* target, const bool* valid, double* homographies,
            int64_t* inliers, bool* ok) {
    for (long i = 0; i < room; ++i) left[i] = valid[i];
    for (int round = 0; round < o.rounds; ++round) {
      long count = 0;
      for (long i = 0; i < room; ++i) {
        if (!left[i]) continue;
        matches[count++] = {(source[2 * i] - frame.middle_x) / frame.unit,
                            (source[2 * i + 1] - frame.middle_y) / frame.unit,
                            (target[2 * i] - frame.middle_x) / frame.unit,
                            (target[2 * i + 1] - frame.middle_y) / frame.unit, 0};
      }
      const bool enough = count > (round == 0 ? o.enough_matches : o.enough_inliers);
      if (enough) find(count);
      for (int s = 0; s < kCompetitions; ++s, homographies += 9, ++inliers, ++ok) {
        double* h = homographies;
        bool found = enough && highest[s] > 0;
        if (found) pixels(s, h);
        for (int e = 0; e < 9 && found; ++e) found = h[e] - h[e] == 0;
        long all = 0, own = 0;
        const double limit = o.threshold * o.threshold, far = limit * o.left * o.left;
        for (long i = 0; i < room && found; ++i) {
          const double error = pixel_error(h, source + 2 * i, target + 2 * i);
          all += (error <= limit) & valid[i], own += (error <= limit) & left[i];
        }
        *inliers = all, *ok = own > o.enough_inliers;
        const bool last = s == kCompetitions - 1;
        for (long i = 0; i < room && last; ++i) {
          left[i] = left[i] && *ok && pixel_error(h, source + 2 * i, target + 2 * i) > far;
        }
        for (int e = 0; e < 9 && !*ok; ++e) h[e] = e % 4 == 0;
      }
    }
  }

  static double pixel_error(const double* h, const float* from, const float* to) {
    const double x = from[0], y = from[1], inverse = 1 / (h[6] * x + h[7] * y + h[8]);
    const double du = (h[0] * x + h[1] * y + h[2]) * inverse - to[0];
    const double dv = (h[3] * x + h[4] * y + h[5]) * inverse - to[1];
    return du * du + dv * dv;
  }
};

bool candidates(const float* source, const float* target, const bool* valid, long pairs, long room,
                long height, long width, const double* numbers, const RansacOptions& options,
                double* homographies, int64_t* inliers, bool* ok, int threads) {
  bool enough_memory = true;
  const long models = options.rounds * kCompetitions;
  parallel_for(pairs, 1, threads, [&](long first, long last) {
    Ransac ransac(options, numbers, height, width, room);
    if (ransac.memory.all == nullptr) {
      __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
      return;
    }
    for (long p = first; p < last; ++p) {
      ransac.pair(source + 2 * p * room, target + 2 * p * room, valid + p * room,
                  homographies + 9 * p * models, inliers + p * models, ok + p * models);
    }
  });
  return enough_memory;
}

bool explained(const float* first, const float* second, const double* homographies, const bool* ok,
               long pairs, long models, long height, long width, int step, int samples, float noise,
               int border, double* scores, int threads) {
  if (samples > kMostSamples || models > kMostModels) return false;
  const long frame = height * width;
  parallel_for(pairs, 1, threads, [&](long begin, long end) {
    for (long p = begin; p < end; ++p) {
      // Competitions often end with the same homography, which is compared once.
      const double* different[kMostModels];
      int many = 0, place[kMostModels];
      for (long m = 0; m < models; ++m) {
        const double* h = homographies + 9 * (p * models + m);
        place[m] = -1;
        if (!ok[p * models + m]) continue;
        for (int k = 0; k < many && place[m] < 0; ++k) {
          if (__builtin_memcmp(different[k], h, 9 * sizeof *h) == 0) place[m] = k;
        }
        if (place[m] < 0) place[m] = many, different[many++] = h;
      }
      double found[kMostModels];
      const Comparison comparison{
          first + p * frame, second + p * frame, height, width, step, samples, border};
      compare(comparison, different, many, noise, found);
      for (long m = 0; m < models; ++m)
        scores[p * models + m] = place[m] < 0 ? -1 : found[place[m]];
    }
  });
  return true;
}

}  // namespace

extern const HomographyKernels kHomography;
const HomographyKernels kHomography{candidates, explained};

}  // namespace MME_ISA
}  // namespace mme
