// mme_targets._cpu: picks the instruction set when it is loaded, and hands pointers over. Shapes,
// dtypes and memory layout are the caller's (mme_targets/backends/native.py) to get right.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "homography.h"
#include "kernels.h"
#include "track_encoder.h"
#include "track_rows.h"

namespace py = pybind11;
using namespace mme;

FlowTimes mme::flow_times{};

namespace {

struct Variant {
  std::string name;
  const Kernels *trajectories, *descriptors, *patch_norm, *optical_flow;
  const CameraKernels* camera_motion;
  const HomographyKernels* homography;
  DecodeRows decode_rows;
  const EncodeRows* encode_rows;
};

// What was built and this processor can run, best last.
std::vector<Variant> variants() {
  std::vector<Variant> list{{"baseline", &baseline::kTrajectories, &baseline::kDescriptors,
                             &baseline::kPatchNorm, &baseline::kOpticalFlow,
                             &baseline::kCameraMotion, &baseline::kHomography,
                             baseline::kDecodeRows, &baseline::kEncodeRows}};
#if defined(MME_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    list.push_back({"avx2", &avx2::kTrajectories, &avx2::kDescriptors, &avx2::kPatchNorm,
                    &avx2::kOpticalFlow, &avx2::kCameraMotion, &avx2::kHomography,
                    avx2::kDecodeRows, &avx2::kEncodeRows});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      list.push_back({"avx512", &avx512::kTrajectories, &avx512::kDescriptors, &avx512::kPatchNorm,
                      &avx512::kOpticalFlow, &avx512::kCameraMotion, &avx512::kHomography,
                      avx512::kDecodeRows, &avx512::kEncodeRows});
    }
  }
#endif
  return list;
}

Variant choose(const std::string& wanted) {
  const std::vector<Variant> list = variants();
  if (wanted.empty()) return list.back();
  std::string names;
  for (const Variant& variant : list) {
    if (variant.name == wanted) return variant;
    names += (names.empty() ? "" : ", ") + variant.name;
  }
  throw std::runtime_error("MME_CPU_ISA is '" + wanted + "'; this processor and build have " +
                           names);
}

Variant& active() {
  static Variant variant = choose(std::getenv("MME_CPU_ISA") ? std::getenv("MME_CPU_ISA") : "");
  return variant;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void tracks(uintptr_t flow, long batch, long pairs, long height, long width, uintptr_t seeds,
            long seed_batches, long count, uintptr_t starts, uintptr_t steps, long rows,
            long length, float bound, bool median, bool bilinear, uintptr_t points,
            uintptr_t displacements, uintptr_t visible, int threads) {
  active().trajectories->tracks(pointer<const float>(flow), pointer<const float>(seeds),
                                pointer<const int32_t>(starts), pointer<const int32_t>(steps),
                                {batch, pairs, height, width, seed_batches, count, rows, length},
                                {bound, median, bilinear}, pointer<float>(points),
                                pointer<float>(displacements), pointer<bool>(visible), threads);
}

void median_filter(uintptr_t planes, long count, long height, long width, uintptr_t out,
                   int threads) {
  active().trajectories->median_filter(pointer<const float>(planes), count, height, width,
                                       pointer<float>(out), threads);
}

void histograms(uintptr_t images, bool is_u8, long count, long channels, long height, long width,
                bool vectors, int bins, int cell, bool linear, bool mean, bool replicate, bool l2,
                uintptr_t out, long s_image, long s_channel, long s_bin, long s_row, long s_column,
                int threads) {
  active().descriptors->histograms(pointer<const void>(images), is_u8, count, channels, height,
                                   width, vectors, {bins, cell, linear, mean, replicate, l2},
                                   pointer<float>(out),
                                   {s_image, s_channel, s_bin, s_row, s_column}, threads);
}

void windows(uintptr_t images, bool is_u8, long batch, long frames, long channels, long height,
             long width, uintptr_t points, long point_stride, long seed_batches, long count,
             uintptr_t starts, uintptr_t times, long, long length, int bins, int cell, bool linear,
             bool mean, bool replicate, bool l2, uintptr_t out, int threads) {
  active().descriptors->windows(
      pointer<const void>(images), is_u8, batch, frames, channels, height, width,
      pointer<const float>(points), point_stride, seed_batches, count,
      pointer<const int32_t>(starts), pointer<const int32_t>(times), length,
      {bins, cell, linear, mean, replicate, l2}, pointer<float>(out), threads);
}

void patch_norm(uintptr_t values, long count, long tracks, long features, bool coordinate,
                float eps, uintptr_t out, uintptr_t mean, uintptr_t std, int threads) {
  active().patch_norm->patch_norm(pointer<const float>(values), count, tracks, features, coordinate,
                                  eps, pointer<float>(out), pointer<float>(mean),
                                  pointer<float>(std), threads);
}

bool optical_flow(uintptr_t frames, bool is_u8, long channels, long height, long width,
                  uintptr_t pairs, long count, uintptr_t initial, float tau, float lambda,
                  float theta, float gamma, float scale_step, float epsilon, float cubic,
                  int scales, int warps, int inner, int outer, int median, bool half, bool patient,
                  bool inside, uintptr_t out, uintptr_t work, int threads) {
  return active().optical_flow->optical_flow(
      pointer<const void>(frames), is_u8, channels, height, width, pointer<const int32_t>(pairs),
      count, pointer<const float>(initial),
      {tau, lambda, theta, gamma, scale_step, epsilon, cubic, scales, warps, inner, outer, median,
       half, patient, inside},
      pointer<float>(out), pointer<int64_t>(work), threads);
}

bool homographies(uintptr_t source, uintptr_t target, uintptr_t valid, long pairs, long room,
                  long height, long width, uintptr_t numbers, const RansacOptions& options,
                  uintptr_t out, uintptr_t inliers, uintptr_t ok, int threads) {
  return active().homography->candidates(
      pointer<const float>(source), pointer<const float>(target), pointer<const bool>(valid), pairs,
      room, height, width, pointer<const double>(numbers), options, pointer<double>(out),
      pointer<int64_t>(inliers), pointer<bool>(ok), threads);
}

bool explained(uintptr_t first, uintptr_t second, uintptr_t models, uintptr_t ok, long pairs,
               long count, long height, long width, int step, int samples, float noise, int border,
               uintptr_t scores, int threads) {
  return active().homography->explained(pointer<const float>(first), pointer<const float>(second),
                                        pointer<const double>(models), pointer<const bool>(ok),
                                        pairs, count, height, width, step, samples, noise, border,
                                        pointer<double>(scores), threads);
}

// From a dictionary of the fields' names; lists end with zeros.
RansacOptions ransac_options(const py::dict& given) {
  RansacOptions o{};
  const auto list = [&](const char* name, double* to, size_t most) {
    const auto values = given[name].cast<std::vector<double>>();
    if (values.size() > most) throw std::runtime_error(std::string(name) + " is too long");
    for (size_t i = 0; i < values.size(); ++i) to[i] = values[i];
  };
  o.threshold = given["threshold"].cast<double>(), o.tight = given["tight"].cast<double>();
  o.still = given["still"].cast<double>(), o.left = given["left"].cast<double>();
  o.largest_zoom = given["largest_zoom"].cast<double>();
  list("scales", o.scales, kCompetitions), list("refinements", o.refinements, kMostRefinements);
  list("polish", o.polish, kMostRefinements);
  o.hypotheses = given["hypotheses"].cast<int>(), o.sample = given["sample"].cast<int>();
  o.best = given["best"].cast<int>(), o.refined = given["refined"].cast<int>();
  o.squares = given["squares"].cast<int>(), o.rounds = given["rounds"].cast<int>();
  o.enough_matches = given["enough_matches"].cast<int>();
  o.enough_inliers = given["enough_inliers"].cast<int>();
  return o;
}

bool surf_points(uintptr_t frames, long count, long height, long width, int octaves,
                 float threshold, long most, uintptr_t places, uintptr_t sides, uintptr_t strengths,
                 uintptr_t found, int threads) {
  return active().camera_motion->surf_points(pointer<const uint8_t>(frames), count, height, width,
                                             octaves, threshold, most, pointer<float>(places),
                                             pointer<float>(sides), pointer<float>(strengths),
                                             pointer<int64_t>(found), threads);
}

bool surf_descriptors(uintptr_t frames, long count, long height, long width, uintptr_t places,
                      uintptr_t sides, uintptr_t found, long stride, long room, uintptr_t falloff,
                      uintptr_t disc, uintptr_t compass, bool upright, bool extended,
                      uintptr_t directions, uintptr_t out, int threads) {
  return active().camera_motion->surf_descriptors(
      pointer<const uint8_t>(frames), count, height, width, pointer<const float>(places),
      pointer<const float>(sides), pointer<const int64_t>(found), stride, room,
      pointer<const float>(falloff), pointer<const float>(disc), pointer<const float>(compass),
      upright, extended, pointer<float>(directions), pointer<float>(out), threads);
}

bool corners(uintptr_t frames, long count, long height, long width, float quality, long candidates,
             long most, uintptr_t places, uintptr_t found, int threads) {
  return active().camera_motion->corners(pointer<const uint8_t>(frames), count, height, width,
                                         quality, candidates, most, pointer<float>(places),
                                         pointer<int64_t>(found), threads);
}

bool mutual(uintptr_t points, uintptr_t descriptors, uintptr_t valid, long room, long values,
            uintptr_t pairs, long count, float window, uintptr_t targets, uintptr_t matched,
            int threads) {
  return active().camera_motion->mutual(
      pointer<const float>(points), pointer<const float>(descriptors), pointer<const bool>(valid),
      room, values, pointer<const int64_t>(pairs), count, window, pointer<float>(targets),
      pointer<bool>(matched), threads);
}

void warp(uintptr_t first, uintptr_t second, bool is_u8, uintptr_t homographies, long count,
          long height, long width, int border, uintptr_t out, int threads) {
  active().camera_motion->warp(pointer<const void>(first), pointer<const void>(second), is_u8,
                               pointer<const double>(homographies), count, height, width, border,
                               pointer<float>(out), threads);
}

bool decode_rows(uintptr_t data, uintptr_t begins, uintptr_t ends, uintptr_t frequencies,
                 long tables, uintptr_t table, uintptr_t rows, uintptr_t depth, uintptr_t slots,
                 long count, long planes, long stride, long gy, long gx, int32_t scale,
                 int32_t cells, int32_t half, uintptr_t out) {
  return active().decode_rows(
      {count, tables, pointer<const uint8_t>(data), pointer<const int64_t>(begins),
       pointer<const int64_t>(ends), pointer<const uint16_t>(frequencies),
       pointer<const int64_t>(table), pointer<const int64_t>(rows), pointer<const int64_t>(depth),
       pointer<const int64_t>(slots), planes},
      {stride, gy, gx, scale, cells, half}, pointer<int16_t>(out));
}

// Rows of a store from their displacements to their symbols, and from those to their bytes.
class TrackEncoder {
 public:
  // Counts [kContexts, 256] of the symbols are added to what is there.
  TrackEncoder(uintptr_t rows, long count, uintptr_t before, long skipped, long first, long planes,
               long stride, long gy, long gx, int32_t scale, int32_t cells, int32_t half,
               uintptr_t counts)
      : rows_(count) {
    py::gil_scoped_release release;
    const PlainRows plain{pointer<const int16_t>(rows),
                          pointer<const int16_t>(before),
                          count,
                          skipped,
                          planes,
                          first};
    if (!active().encode_rows->symbols(plain, {stride, gy, gx, scale, cells, half}, rows_.data(),
                                       pointer<int64_t>(counts))) {
      throw std::bad_alloc();
    }
  }

  // By tables [kContexts, 256] of uint16.
  std::vector<py::bytes> encoded(uintptr_t tables) const {
    Held<RowBytes> found(rows_.size());
    bool done;
    {
      py::gil_scoped_release release;
      done = active().encode_rows->bytes(rows_.data(), static_cast<long>(rows_.size()),
                                         pointer<const uint16_t>(tables), found.data());
    }
    if (!done) throw py::value_error("rows cannot be encoded");
    std::vector<py::bytes> list;
    for (const RowBytes& row : found) {
      list.emplace_back(reinterpret_cast<const char*>(row.memory), row.size);
    }
    return list;
  }

 private:
  // What holds memory of malloc.
  template <class T>
  struct Held : std::vector<T> {
    using std::vector<T>::vector;
    ~Held() {
      for (const T& one : *this) std::free(one.memory);
    }
  };

  Held<RowSymbols> rows_;
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The CPU floor of mme_targets: SIMD and threads on raw pointers.";
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("tracks", &tracks, release);
  m.def("median_filter", &median_filter, release);
  m.def("histograms", &histograms, release);
  m.def("windows", &windows, release);
  m.def("patch_norm", &patch_norm, release);
  m.def("optical_flow", &optical_flow, release);
  py::class_<RansacOptions>(m, "RansacOptions").def(py::init(&ransac_options));
  m.def("homographies", &homographies, release);
  m.def("explained", &explained, release);
  m.def("surf_points", &surf_points, release);
  m.def("surf_descriptors", &surf_descriptors, release);
  m.def("corners", &corners, release);
  m.def("mutual", &mutual, release);
  m.def("warp", &warp, release);
  m.def("decode_rows", &decode_rows, release);
  py::class_<TrackEncoder>(m, "TrackEncoder")
      .def(py::init<uintptr_t, long, uintptr_t, long, long, long, long, long, long, int32_t,
                    int32_t, int32_t, uintptr_t>())
      .def("encoded", &TrackEncoder::encoded);
  m.def("isa", [] { return active().name; }, "Instruction set in use.");
  m.def(
      "use_isa", [](const std::string& name) { active() = choose(name); },
      "Switch the instruction set, as MME_CPU_ISA does at start; '' for the best.");
  m.def(
      "flow_times",
      [](bool on) {
        const FlowTimes t = flow_times;
        flow_times = {on, 0, 0, 0, 0, 0};
        py::dict found;
        found["work"] = t.work, found["whole"] = t.whole, found["warps"] = t.warps;
        found["medians"] = t.medians, found["iterations"] = t.iterations;
        return found;
      },
      py::arg("on"),
      "TV-L1's pixel-iterations, and the ns of CPU time in all of it, in warps (with the texture "
      "they\n"
      "read), in medians and in iterations, since the last call; then count anew, or stop.");
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Variant& variant : variants()) names.push_back(variant.name);
    return py::cast(names);
  });
}
