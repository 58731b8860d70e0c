// Cell histograms on CUDA: csrc/common/descriptors.h. Two kernels:
//
// nine_bins_kernel  uint8 frames, 8x8 cells, nine hard bins (the paper's HOG): one thread a cell.
// cells_kernel      everything else, and windows around points: one thread a cell's column.
//
// Both add the pixels of a column top to bottom into a row of shared memory that belongs to the
// thread (one word a bin, in the thread's own bank, so that lanes never collide whatever bins they
// hit), then the columns left to right. Each output is written once; nothing is atomic.
#include "../common/descriptors.h"
#include "../common/nine_bins.h"
#include "../common/trajectories.h"
#include "launch.h"

namespace mme::cuda {
namespace {

MME_FN int border(int i, int n, bool copy) { return copy ? replicate(i, n) : reflect(i, n); }

MME_FN float pooled(float sum, const HistogramOptions& o) {
  return o.mean ? mul(sum, 1.f / static_cast<float>(o.cell * o.cell)) : sum;
}

MME_FN float l2_divisor(float squares) {
  const float norm = root(squares), least = 1e-12f;
  return norm > least ? norm : least;
}

// ---- Any histogram
// -------------------------------------------------------------------------------

constexpr int kColumns = 256;  // threads of a block, each with a column of a cell
constexpr int kMostCells = kColumns / 2;

// Where a cell's pixels lie and its histogram goes. image is null where there are no pixels.
template <class T>
struct Spot {
  const T* image;
  int x, y;
  int64_t out;
};

// The cells of a map, or of the map of vectors (two planes an image, one histogram).
template <class T>
struct MapCells {
  const T* images;
  int64_t count, channels;
  int height, width, rows, columns, cell;
  bool vectors;
  CellStrides s;

  MME_FN int64_t bin_stride() const { return s.bin; }
  MME_FN Spot<T> operator()(int64_t item) const {
    const int64_t line = item / columns, plane = line / rows, image = plane / channels;
    const int64_t channel = plane - image * channels;
    const int column = static_cast<int>(item - line * columns);
    const int row = static_cast<int>(line - plane * rows);
    const int64_t size = static_cast<int64_t>(height) * width;
    return {images + (vectors ? 2 * plane : plane) * size, column * cell, row * cell,
            image * s.image + channel * s.channel + row * s.row + column * s.column};
  }
};

// Windows around the points of tracks, shifted into the frame.
template <class T>
struct PointCells {
  const T* images;
  const float* points;
  const int32_t *starts, *times;
  WindowSizes s;
  int cell, bins;

  MME_FN int64_t bin_stride() const { return 1; }
  MME_FN int corner(float position, int size) const {
    return clamp(nearest(bounded(position)) - cell / 2, 0, size - cell);
  }
  MME_FN Spot<T> operator()(int64_t item) const {
    const int64_t place = item / s.channels, channel = item - place * s.channels;
    const int64_t track = place / s.length, step = place - track * s.length;
    const int64_t b = track / s.tracks;
    const int64_t start = read(starts + (s.seed_batches > 1 ? track : track - b * s.tracks));
    const int64_t frame =
        start >= 0 && start < s.starts ? read(times + start * s.length + step) : -1;
    const bool exists = frame >= 0 && frame < s.frames;
    const float* point = points + (track * s.point_stride + step) * 2;
    const int64_t plane = (b * s.frames + frame) * s.channels + channel;
    return {exists ? images + plane * s.height * s.width : nullptr, corner(read(point), s.width),
            corner(read(point + 1), s.height), item * bins};
  }
};

template <int kBins>
MME_FN void vote(Gradient g, bool linear, const BinTable& table, float* slots) {
  const float m = magnitude(g);
  if (linear) {
    if (!(m > 0.f)) return;  // no direction, or not finite
    const SoftBin bin = soft_bin(g, table.bins);
    float *first = slots + bin.first * kColumns, *second = slots + bin.second * kColumns;
    *first = add(*first, mul(m, add(1.f, -bin.share)));
    *second = add(*second, mul(m, bin.share));
  } else {
    float* slot = slots + hard_bin<kBins>(g, table) * kColumns;
    *slot = add(*slot, m);
  }
}

// V: int for uint8 frames, whose sums are exact, else float.
template <class V, int kBins, class T>
MME_FN void vote_column(const T* image, int height, int width, int x, int top,
                        const HistogramOptions& o, bool vectors, const BinTable& table,
                        float* slots) {
  if (vectors) {
    const T* at = image + static_cast<int64_t>(top) * width + x;
    const T* at_y = at + static_cast<int64_t>(height) * width;
    for (int y = 0; y < o.cell; ++y, at += width, at_y += width) {
      const Gradient g{static_cast<float>(read(at)), static_cast<float>(read(at_y))};
      vote<kBins>(g, o.linear, table, slots);
    }
    return;
  }
  const int left = border(x - 1, width, o.replicate), right = border(x + 1, width, o.replicate);
  const auto row = [&](int y) {
    const T* p = image + static_cast<int64_t>(border(y, height, o.replicate)) * width;
    return row_sums<V>(read(p + left), read(p + x), read(p + right));
  };
  RowSums<V> above = row(top - 1), here = row(top);
  for (int y = top; y < top + o.cell; ++y) {
    const RowSums<V> below = row(y + 1);
    vote<kBins>(sobel(above, here, below), o.linear, table, slots);
    above = here, here = below;
  }
}

// kBins: the number of bins where it is known, else 0.
template <class T, class V, int kBins, class Cells>
__global__ void __launch_bounds__(kColumns)
    cells_kernel(Cells cells, int64_t items, int height, int width, bool vectors,
                 HistogramOptions o, BinTable table, float* out) {
  MME_DYNAMIC_SHARED(float, slots);  // [bins, kColumns]
  __shared__ Spot<T> spots[kMostCells];
  const int bins = kBins > 0 ? kBins : o.bins, thread = threadIdx.x;
  const int fit = kColumns / o.cell;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * fit;
  const int held = items - first < fit ? static_cast<int>(items - first) : fit;
  if (thread < held) spots[thread] = cells(first + thread);
  for (int k = 0; k < bins; ++k) slots[k * kColumns + thread] = 0.f;
  __syncthreads();

  const int mine = thread / o.cell;
  if (mine < held && spots[mine].image) {
    const Spot<T> spot = spots[mine];
    vote_column<V, kBins>(spot.image, height, width, spot.x + thread - mine * o.cell, spot.y, o,
                          vectors, table, slots + thread);
  }
  __syncthreads();

  // A bin of a cell: its columns left to right, into the place of the first.
  for (int i = thread; i < held * bins; i += kColumns) {
    const int bin = i / held;
    float* columns = slots + bin * kColumns + (i - bin * held) * o.cell;
    float sum = columns[0];
    for (int column = 1; column < o.cell; ++column) sum = add(sum, columns[column]);
    columns[0] = pooled(sum, o);
  }
  __syncthreads();

  const int64_t stride = cells.bin_stride();
  for (int i = thread; i < held * bins; i += kColumns) {
    // Neighbouring threads write neighbouring elements: the bins of a cell, or a bin of the cells.
    const int bin = stride == 1 ? i % bins : i / held;
    const int cell = stride == 1 ? i / bins : i % held;
    const float* sums = slots + cell * o.cell;
    float value = sums[bin * kColumns];
    if (o.l2) {
      float squares = 0.f;
      for (int k = 0; k < bins; ++k) {
        squares = add(squares, mul(sums[k * kColumns], sums[k * kColumns]));
      }
      value /= l2_divisor(squares);
    }
    out[spots[cell].out + bin * stride] = value;
  }
}

template <class T, class V, class Cells>
void launch_cells(const char* what, const Cells& cells, int64_t items, int height, int width,
                  bool vectors, const HistogramOptions& o, float* out, Queue queue) {
  const auto kernel = o.bins == 9 ? cells_kernel<T, V, 9, Cells> : cells_kernel<T, V, 0, Cells>;
  launch(what, queue, kernel, divide_up(items, kColumns / o.cell), kColumns,
         sizeof(float) * o.bins * kColumns, cells, items, height, width, vectors, o,
         bin_table(o.bins), out);
}

// ---- The paper's HOG
// -----------------------------------------------------------------------------

constexpr int kBlockCells = 64, kRows = 10;

__global__ void __launch_bounds__(kBlockCells, 8)
    nine_bins_kernel(MapCells<uint8_t> cells, int64_t items, HistogramOptions o, float* out) {
  __shared__ float slots[9 * kBlockCells];
  const int thread = threadIdx.x, width = cells.width;
  const int64_t wanted = global_thread();
  const bool exists = wanted < items;
  const Spot<uint8_t> spot = cells(exists ? wanted : items - 1);  // warps stay whole

  // The cell's ten rows: eight bytes, and one on either side. A warp reads 256 bytes a row.
  uint32_t words[kRows], next[kRows], last[(kRows + 3) / 4] = {0, 0, 0};  // last: a byte a row
  float left[kRows], here[kRows];
  const int before = border(spot.x - 1, width, o.replicate);
  const int after = border(spot.x + 8, width, o.replicate);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int y = border(spot.y + r - 1, cells.height, o.replicate);
    const uint8_t* row = spot.image + static_cast<int64_t>(y) * width;
    const uint2 eight = read(reinterpret_cast<const uint2*>(row + spot.x));
    words[r] = eight.x, next[r] = eight.y;
    last[r / 4] |= static_cast<uint32_t>(read(row + after)) << (8 * (r % 4));
    left[r] = biased_byte(read(row + before), 0);
    here[r] = biased_byte(eight.x, 0);
  }

  float totals[9];
#pragma unroll
  for (int k = 0; k < 9; ++k) slots[k * kBlockCells + thread] = totals[k] = 0.f;
  const uint32_t base = nine_bin_base(sizeof(float) * thread);
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      float right[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        right[r] = column < 3 ? biased_byte(words[r], column + 1) : biased_byte(next[r], 0);
      }
      RowSums<float> above = row_sums(left[0], here[0], right[0]);
      RowSums<float> middle = row_sums(left[1], here[1], right[1]);
#pragma unroll
      for (int y = 0; y < 8; ++y) {
        const RowSums<float> below = row_sums(left[y + 2], here[y + 2], right[y + 2]);
        const Gradient g = sobel(above, middle, below);
        const uint32_t offset = nine_bin_offset(nine_bin(g), sizeof(float) * kBlockCells, base);
        float* slot = reinterpret_cast<float*>(reinterpret_cast<char*>(slots) + offset);
        *slot = add(*slot, nine_bins_magnitude(g));
        above = middle, middle = below;
      }
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        totals[k] = add(totals[k], slots[k * kBlockCells + thread]);
        slots[k * kBlockCells + thread] = 0.f;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) left[r] = here[r], here[r] = right[r];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      words[r] = next[r], next[r] = last[r / 4] >> (8 * (r % 4));
    }
  }

  float squares = 0.f;
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    totals[k] = pooled(mul(totals[k], kNineBinsScale), o);
    squares = add(squares, mul(totals[k], totals[k]));
  }
  if (o.l2) {
    const float divisor = l2_divisor(squares);
#pragma unroll
    for (int k = 0; k < 9; ++k) totals[k] /= divisor;
  }

  const int64_t stride = cells.bin_stride();
  if (stride != 1) {  // neighbouring threads write neighbouring cells of a bin
    if (!exists) return;
#pragma unroll
    for (int k = 0; k < 9; ++k) out[spot.out + k * stride] = totals[k];
    return;
  }
  // Bins lie together: the warp turns its 32 x 9 values round, so that runs of nine are written.
#pragma unroll
  for (int k = 0; k < 9; ++k) slots[k * kBlockCells + thread] = totals[k];
  __syncwarp();
  const int lane = thread % kWarp;
#pragma unroll
  for (int i = 0; i < 9; ++i) {
    const int element = i * kWarp + lane, cell = element / 9, bin = element - cell * 9;
    const int64_t place = __shfl_sync(kAllLanes, spot.out, cell);
    if (wanted - lane + cell < items) {
      out[place + bin] = slots[bin * kBlockCells + thread - lane + cell];
    }
  }
}

}  // namespace

void histograms(const void* images, bool is_u8, int64_t count, int64_t channels, int height,
                int width, bool vectors, const HistogramOptions& o, float* out,
                const CellStrides& strides, Queue queue) {
  const int rows = height / o.cell, columns = width / o.cell;
  const int64_t made = vectors ? 1 : channels, items = count * made * rows * columns;
  if (is_u8) {
    const MapCells<uint8_t> cells{static_cast<const uint8_t*>(images),
                                  count,
                                  made,
                                  height,
                                  width,
                                  rows,
                                  columns,
                                  o.cell,
                                  vectors,
                                  strides};
    const bool whole_words = width % 8 == 0 && reinterpret_cast<uintptr_t>(images) % 8 == 0;
    if (o.bins == 9 && o.cell == 8 && !o.linear && !vectors && whole_words) {
      launch("histograms", queue, nine_bins_kernel, divide_up(items, kBlockCells), kBlockCells, 0,
             cells, items, o, out);
    } else {
      launch_cells<uint8_t, int>("histograms", cells, items, height, width, vectors, o, out, queue);
    }
  } else {
    const MapCells<float> cells{static_cast<const float*>(images),
                                count,
                                made,
                                height,
                                width,
                                rows,
                                columns,
                                o.cell,
                                vectors,
                                strides};
    launch_cells<float, float>("histograms", cells, items, height, width, vectors, o, out, queue);
  }
}

void windows(const void* images, bool is_u8, const WindowSizes& s, const float* points,
             const int32_t* starts, const int32_t* times, const HistogramOptions& o, float* out,
             Queue queue) {
  const int64_t items = s.batch * s.tracks * s.length * s.channels;
  if (is_u8) {
    const PointCells<uint8_t> cells{
        static_cast<const uint8_t*>(images), points, starts, times, s, o.cell, o.bins};
    launch_cells<uint8_t, int>("windows", cells, items, s.height, s.width, false, o, out, queue);
  } else {
    const PointCells<float> cells{
        static_cast<const float*>(images), points, starts, times, s, o.cell, o.bins};
    launch_cells<float, float>("windows", cells, items, s.height, s.width, false, o, out, queue);
  }
}

}  // namespace mme::cuda
