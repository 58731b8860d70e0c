// mme_targets._cuda: hands pointers over. Shapes, dtypes and memory layout are the caller's
// (mme_targets/backends/native.py) to get right. The CUDA runtime is linked statically, so that
// this imports where there is no GPU and no driver; the first launch says what is missing.
#include <pybind11/pybind11.h>

#include <string>

#include "kernels.h"

// The targets of this build, as setup.py chose them.
#if !defined(MME_CUDA_ARCHS)
#define MME_CUDA_ARCHS "unknown"
#endif

namespace py = pybind11;
using namespace mme::cuda;

namespace {

template <class T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

Queue queue(int device, uint64_t stream) { return {device, pointer<void>(stream)}; }

void tracks_(uint64_t flow, bool half, int64_t batch, int64_t pairs, int height, int width,
             uint64_t seeds, int64_t seed_batches, int64_t count, uint64_t starts, uint64_t steps,
             int64_t rows, int length, float bound, bool median, bool bilinear, uint64_t points,
             uint64_t displacements, uint64_t visible, int device, uint64_t stream) {
  tracks(pointer<const void>(flow), pointer<const float>(seeds), pointer<const int32_t>(starts),
         pointer<const int32_t>(steps),
         {batch, pairs, height, width, seed_batches, count, rows, length},
         {bound, half, median, bilinear}, pointer<float>(points), pointer<float>(displacements),
         pointer<bool>(visible), queue(device, stream));
}

void median_filter_(uint64_t planes, int64_t count, int height, int width, uint64_t out, int device,
                    uint64_t stream) {
  median_filter(pointer<const float>(planes), count, height, width, pointer<float>(out),
                queue(device, stream));
}

void histograms_(uint64_t images, bool is_u8, int64_t count, int64_t channels, int height,
                 int width, bool vectors, int bins, int cell, bool linear, bool mean,
                 bool replicate, bool l2, uint64_t out, int64_t s_image, int64_t s_channel,
                 int64_t s_bin, int64_t s_row, int64_t s_column, int device, uint64_t stream) {
  histograms(pointer<const void>(images), is_u8, count, channels, height, width, vectors,
             {bins, cell, linear, mean, replicate, l2}, pointer<float>(out),
             {s_image, s_channel, s_bin, s_row, s_column}, queue(device, stream));
}

void windows_(uint64_t images, bool is_u8, int64_t batch, int64_t frames, int64_t channels,
              int height, int width, uint64_t points, int64_t point_stride, int64_t seed_batches,
              int64_t count, uint64_t starts, uint64_t times, int64_t rows, int length, int bins,
              int cell, bool linear, bool mean, bool replicate, bool l2, uint64_t out, int device,
              uint64_t stream) {
  windows(pointer<const void>(images), is_u8,
          {batch, frames, channels, height, width, point_stride, seed_batches, count, rows, length},
          pointer<const float>(points), pointer<const int32_t>(starts),
          pointer<const int32_t>(times), {bins, cell, linear, mean, replicate, l2},
          pointer<float>(out), queue(device, stream));
}

void patch_norm_(uint64_t values, int64_t count, int64_t tracks, int64_t features, bool coordinate,
                 float eps, uint64_t out, uint64_t mean, uint64_t std, int device,
                 uint64_t stream) {
  patch_norm(pointer<const float>(values), count, tracks, features, coordinate, eps,
             pointer<float>(out), pointer<float>(mean), pointer<float>(std), queue(device, stream));
}

int64_t optical_flow_workspace_(int height, int width, int64_t count, float gamma, float scale_step,
                                int scales, int team, int device) {
  mme::FlowOptions options{};  // the rest takes no memory
  options.gamma = gamma, options.scale_step = scale_step, options.scales = scales;
  return optical_flow_workspace(height, width, count, options, team, device);
}

bool optical_flow_(uint64_t frames, bool is_u8, int64_t channels, int height, int width,
                   uint64_t pairs, int64_t count, uint64_t initial, float tau, float lambda,
                   float theta, float gamma, float scale_step, float epsilon, float cubic,
                   int scales, int warps, int inner, int outer, int median, bool half, bool patient,
                   bool inside, uint64_t out, uint64_t work, uint64_t workspace, int team,
                   int device, uint64_t stream) {
  optical_flow(pointer<const void>(frames), is_u8, channels, height, width,
               pointer<const int32_t>(pairs), count, pointer<const float>(initial),
               {tau, lambda, theta, gamma, scale_step, epsilon, cubic, scales, warps, inner, outer,
                median, half, patient, inside},
               pointer<float>(out), pointer<int64_t>(work), pointer<void>(workspace), team,
               queue(device, stream));
  return true;  // the memory is the caller's
}

py::dict info() {
  const int version = compiled_version();
  py::dict dict;
  dict["cuda_version"] = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  dict["archs"] = MME_CUDA_ARCHS;
  return dict;
}

}  // namespace

#if !defined(MME_CUDA_MODULE)
#define MME_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(MME_CUDA_MODULE, m) {
  m.doc() = "The CUDA floor of mme_targets: raw device pointers, a device and a stream.";
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("tracks", &tracks_, release);
  m.def("median_filter", &median_filter_, release);
  m.def("histograms", &histograms_, release);
  m.def("windows", &windows_, release);
  m.def("patch_norm", &patch_norm_, release);
  m.def("optical_flow", &optical_flow_, release);
  m.def("optical_flow_workspace", &optical_flow_workspace_, release);
  m.def("info", &info, "CUDA's version and the architectures compiled for.");
}
