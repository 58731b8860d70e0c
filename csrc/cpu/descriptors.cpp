// Cell histograms in one pass: rows of Sobel sums, then each cell's pixels vote. The fast path
// (hard bins, 8x8 cells, 9 bins) has a cell's eight columns in lanes; all else goes pixel by pixel
// through csrc/common. Both add a cell's columns top to bottom, then the columns left to right.
#include "simd.h"

#include "../common/descriptors.h"
#include "kernels.h"
#include "threads.h"

#include <cstdlib>

namespace mme {
namespace MME_ISA {
namespace {

// Sobel splits: with `across` = right - left and `along` = left + 2 centre + right of each row,
// gx = across(above) + 2 across + across(below) and gy = along(below) - along(above).
// Sums of uint8 fit int16 and are exact.
template <class T>
struct Sums;
template <>
struct Sums<uint8_t> {
  using type = int16_t;
};
template <>
struct Sums<float> {
  using type = float;
};

int border(int i, int n, bool copy) { return copy ? replicate(i, n) : reflect(i, n); }

// Columns [x0, x0 + count) of row y, which may lie one row outside.
template <class T, class S>
void sum_row(const T* image, int y, int height, int width, int x0, int count, bool copy, S* across,
             S* along) {
  const T* row = image + static_cast<long>(border(y, height, copy)) * width;
  const auto one = [&](int i) {
    const int x = x0 + i;
    const S left = row[border(x - 1, width, copy)], right = row[border(x + 1, width, copy)];
    across[i] = static_cast<S>(right - left);
    along[i] = static_cast<S>(left + static_cast<S>(row[x]) * 2 + right);
  };
  const int from = x0 == 0 ? 1 : 0, to = x0 + count == width ? count - 1 : count;
  if (from == 1) one(0);
  const T* at = row + x0;
  for (int i = from; i < to; ++i) {
    const S left = at[i - 1], right = at[i + 1];
    across[i] = static_cast<S>(right - left);
    along[i] = static_cast<S>(left + static_cast<S>(at[i]) * 2 + right);
  }
  if (to < count) one(count - 1);
}

// Rows of sums; row 0 is the one above the cells.
template <class S>
struct Rows {
  S *across, *along;
  long stride;

  Gradient gradient(int x, int y) const {
    const S *a = across + y * stride + x, *b = along + y * stride + x;
    return {static_cast<float>(a[0] + a[stride] * 2 + a[2 * stride]),
            static_cast<float>(b[2 * stride] - b[0])};
  }
};

// Flow vectors serve as gradients as they are.
struct Vectors {
  const float *x, *y;
  long stride;

  Gradient gradient(int column, int row) const {
    return {x[row * stride + column], y[row * stride + column]};
  }
};

template <class Source>
void vote_cell(const Source& source, int x, const HistogramOptions& o, const BinTable& table,
               float* sums) {
  float column[kMaxBins];
  for (int k = 0; k < o.bins; ++k) sums[k] = 0.f;
  for (int i = 0; i < o.cell; ++i) {
    for (int k = 0; k < o.bins; ++k) column[k] = 0.f;
    for (int y = 0; y < o.cell; ++y) {
      const Gradient g = source.gradient(x + i, y);
      const float m = magnitude(g);
      if (m == 0.f) continue;
      if (o.linear) {
        const SoftBin b = soft_bin(g, o.bins);
        column[b.first] = add(column[b.first], mul(m, add(1.f, -b.share)));
        column[b.second] = add(column[b.second], mul(m, b.share));
      } else {
        const int bin = hard_bin(g, table);
        column[bin] = add(column[bin], m);
      }
    }
    for (int k = 0; k < o.bins; ++k) sums[k] = add(sums[k], column[k]);
  }
}

#if defined(MME_SIMD)

MME_LANE F load(const float* p) { return _mm256_loadu_ps(p); }
MME_LANE F widen(__m128i a) { return to_float(_mm256_cvtepi16_epi32(a)); }
MME_LANE __m128i load(const int16_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

MME_LANE void gradients(const Vectors& v, int x, int y, F& gx, F& gy) {
  gx = load(v.x + y * v.stride + x), gy = load(v.y + y * v.stride + x);
}
MME_LANE void gradients(const Rows<float>& r, int x, int y, F& gx, F& gy) {
  const float *a = r.across + y * r.stride + x, *b = r.along + y * r.stride + x;
  const F middle = load(a + r.stride);
  gx = _mm256_add_ps(_mm256_add_ps(load(a), _mm256_add_ps(middle, middle)), load(a + 2 * r.stride));
  gy = _mm256_sub_ps(load(b + 2 * r.stride), load(b));
}
MME_LANE void gradients(const Rows<int16_t>& r, int x, int y, F& gx, F& gy) {
  const int16_t *a = r.across + y * r.stride + x, *b = r.along + y * r.stride + x;
  const __m128i middle = load(a + r.stride);
  gx = widen(
      _mm_add_epi16(_mm_add_epi16(load(a), _mm_add_epi16(middle, middle)), load(a + 2 * r.stride)));
  gy = widen(_mm_sub_epi16(load(b + 2 * r.stride), load(b)));
}

// The edges' directions of nine bins; those of k and 9 - k mirror each other.
struct Edges {
  F cosine[5], sine[5];
  explicit MME_LANE Edges(const BinTable& table) {
    for (int k = 1; k < 5; ++k) cosine[k] = set(table.cosine[k]), sine[k] = set(table.sine[k]);
  }
};

// `vote_cell` for hard bins, eight columns and nine bins.
template <bool kMayBeInfinite, class Source>
MME_LANE void vote_cell9(const Source& source, int x, int rows, const Edges& edges, float* sums) {
  const F zero = set(0.f);
  F bin[9];
  for (int k = 0; k < 9; ++k) bin[k] = zero;
  for (int y = 0; y < rows; ++y) {
    F gx, gy;
    gradients(source, x, y, gx, gy);
    F m = _mm256_sqrt_ps(_mm256_add_ps(_mm256_mul_ps(gx, gx), _mm256_mul_ps(gy, gy)));
    if (kMayBeInfinite) m = where(le(m, set(3.402823466e+38f)), m);
    // upper_half: where gx < 0 both change sign; where gx = 0, gy loses its sign.
    const F flat = _mm256_cmp_ps(gx, zero, _CMP_EQ_OQ);
    gy = negate_where_negative(gy, gx);
    gy = _mm256_andnot_ps(_mm256_and_ps(flat, set(-0.f)), gy);
    gx = _mm256_andnot_ps(set(-0.f), gx);
    Mask reached[10];
    reached[0] = all_lanes();
    for (int k = 1; k < 5; ++k) {
      const F a = _mm256_mul_ps(gx, edges.cosine[k]), b = _mm256_mul_ps(gy, edges.sine[k]);
      reached[k] = ge(a, b);
      reached[9 - k] = ge(_mm256_xor_ps(a, set(-0.f)), b);
    }
    for (int k = 0; k < 8; ++k) {
      bin[k] = add_where(first_only(reached[k], reached[k + 1]), bin[k], m);
    }
    bin[8] = add_where(reached[8], bin[8], m);
  }
  alignas(32) float last[8];
  _mm256_store_ps(last, bin[8]);
  transpose(bin);  // now a column's eight bins are one vector
  F total = bin[0];
  for (int column = 1; column < 8; ++column) total = _mm256_add_ps(total, bin[column]);
  _mm256_storeu_ps(sums, total);
  float ninth = last[0];
  for (int column = 1; column < 8; ++column) ninth += last[column];
  sums[8] = ninth;
}

#endif

// All cells of one row of cells, or one window: finish(i, sums) takes cell i's raw sums.
template <class Source, class Finish>
void vote_cells(const Source& source, long cells, const HistogramOptions& o, const BinTable& table,
                bool may_be_infinite, const Finish& finish) {
  float sums[kMaxBins];
#if defined(MME_SIMD)
  if (o.cell == 8 && o.bins == 9 && !o.linear) {
    const Edges edges(table);
    for (long i = 0; i < cells; ++i) {
      if (may_be_infinite) {
        vote_cell9<true>(source, static_cast<int>(8 * i), 8, edges, sums);
      } else {
        vote_cell9<false>(source, static_cast<int>(8 * i), 8, edges, sums);
      }
      finish(i, sums);
    }
    return;
  }
#endif
  (void)may_be_infinite;
  for (long i = 0; i < cells; ++i) {
    vote_cell(source, static_cast<int>(i * o.cell), o, table, sums);
    finish(i, sums);
  }
}

// Mean and L2, in place.
void pool(float* sums, const HistogramOptions& o) {
  if (o.mean) {
    const float share = 1.f / static_cast<float>(o.cell * o.cell);
    for (int k = 0; k < o.bins; ++k) sums[k] = mul(sums[k], share);
  }
  if (o.l2) {
    float squares = 0.f;
    for (int k = 0; k < o.bins; ++k) squares = add(squares, mul(sums[k], sums[k]));
    const float norm = root(squares), least = 1e-12f;
    for (int k = 0; k < o.bins; ++k) sums[k] /= norm > least ? norm : least;
  }
}

template <class T>
void histograms_of(const T* images, long count, long channels, int height, int width,
                   HistogramOptions o, float* out, CellStrides s, int threads) {
  using S = typename Sums<T>::type;
  const BinTable table = bin_table(o.bins);
  const long rows = height / o.cell, columns = width / o.cell;
  const int used = static_cast<int>(columns * o.cell);
  parallel_for(count * rows, 4, threads, [&](long first, long last) {
    const long stride = used + 16;
    S* buffer = static_cast<S*>(std::malloc(sizeof(S) * 2 * stride * (o.cell + 2)));
    const Rows<S> sums{buffer, buffer + stride * (o.cell + 2), stride};
    for (long piece = first; piece < last; ++piece) {
      const long m = piece / rows, row = piece % rows;
      for (long c = 0; c < channels; ++c) {
        const T* image = images + (m * channels + c) * height * width;
        for (int y = 0; y < o.cell + 2; ++y) {
          sum_row<T, S>(image, static_cast<int>(row * o.cell) + y - 1, height, width, 0, used,
                        o.replicate, sums.across + y * stride, sums.along + y * stride);
        }
        float* place = out + m * s.image + c * s.channel + row * s.row;
        vote_cells(sums, columns, o, table, sizeof(T) > 1, [&](long column, float* bins) {
          pool(bins, o);
          for (int k = 0; k < o.bins; ++k) place[column * s.column + k * s.bin] = bins[k];
        });
      }
    }
    std::free(buffer);
  });
}

void histograms_of_vectors(const float* flow, long count, int height, int width, HistogramOptions o,
                           float* out, CellStrides s, int threads) {
  const BinTable table = bin_table(o.bins);
  const long rows = height / o.cell, columns = width / o.cell, plane = 1L * height * width;
  parallel_for(count * rows, 4, threads, [&](long first, long last) {
    for (long piece = first; piece < last; ++piece) {
      const long m = piece / rows, row = piece % rows;
      const float* x = flow + 2 * m * plane + row * o.cell * width;
      float* place = out + m * s.image + row * s.row;
      vote_cells(Vectors{x, x + plane, width}, columns, o, table, true,
                 [&](long column, float* bins) {
                   pool(bins, o);
                   for (int k = 0; k < o.bins; ++k) place[column * s.column + k * s.bin] = bins[k];
                 });
    }
  });
}

void histograms(const void* images, bool is_u8, long count, long channels, long height, long width,
                bool vectors, HistogramOptions o, float* out, CellStrides s, int threads) {
  const int h = static_cast<int>(height), w = static_cast<int>(width);
  if (vectors) {
    histograms_of_vectors(static_cast<const float*>(images), count, h, w, o, out, s, threads);
  } else if (is_u8) {
    histograms_of(static_cast<const uint8_t*>(images), count, channels, h, w, o, out, s, threads);
  } else {
    histograms_of(static_cast<const float*>(images), count, channels, h, w, o, out, s, threads);
  }
}

template <class T>
void windows_of(const T* images, long batch, long frames, long channels, int height, int width,
                const float* points, long point_stride, long seed_batches, long tracks,
                const int32_t* starts, const int32_t* times, long length, HistogramOptions o,
                float* out, int threads) {
  using S = typename Sums<T>::type;
  const BinTable table = bin_table(o.bins);
  const auto corner = [&](float position, int size) {
    return clamp(static_cast<int>(floorf(add(clamp(position, -1e6f, 1e6f), 0.5f))) - o.cell / 2, 0,
                 size - o.cell);
  };
  parallel_for(batch * tracks, 32, threads, [&](long first, long last) {
    const long stride = o.cell + 8;
    S* buffer = static_cast<S*>(std::malloc(sizeof(S) * 2 * stride * (o.cell + 2)));
    const Rows<S> sums{buffer, buffer + stride * (o.cell + 2), stride};
    for (long track = first; track < last; ++track) {
      const long b = track / tracks;
      const long row = seed_batches > 1 ? track : track % tracks;
      for (long step = 0; step < length; ++step) {
        const float* point = points + (track * point_stride + step) * 2;
        const int left = corner(point[0], width), top = corner(point[1], height);
        const long frame = b * frames + times[starts[row] * length + step];
        for (long c = 0; c < channels; ++c) {
          const T* image = images + (frame * channels + c) * height * width;
          for (int y = 0; y < o.cell + 2; ++y) {
            sum_row<T, S>(image, top + y - 1, height, width, left, o.cell, o.replicate,
                          sums.across + y * stride, sums.along + y * stride);
          }
          float* place = out + ((track * length + step) * channels + c) * o.bins;
          vote_cells(sums, 1, o, table, sizeof(T) > 1, [&](long, float* bins) {
            pool(bins, o);
            for (int k = 0; k < o.bins; ++k) place[k] = bins[k];
          });
        }
      }
    }
    std::free(buffer);
  });
}

void windows(const void* images, bool is_u8, long batch, long frames, long channels, long height,
             long width, const float* points, long point_stride, long seed_batches, long tracks,
             const int32_t* starts, const int32_t* times, long length, HistogramOptions o,
             float* out, int threads) {
  const int h = static_cast<int>(height), w = static_cast<int>(width);
  if (is_u8) {
    windows_of(static_cast<const uint8_t*>(images), batch, frames, channels, h, w, points,
               point_stride, seed_batches, tracks, starts, times, length, o, out, threads);
  } else {
    windows_of(static_cast<const float*>(images), batch, frames, channels, h, w, points,
               point_stride, seed_batches, tracks, starts, times, length, o, out, threads);
  }
}

}  // namespace

extern const Kernels kDescriptors;
const Kernels kDescriptors{nullptr, nullptr, nullptr, histograms, windows, nullptr, nullptr};

}  // namespace MME_ISA
}  // namespace mme
