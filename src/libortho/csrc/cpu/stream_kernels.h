// The sparse streams, written once over a vector type V (described in base_kernels.h); lanes are
// rows of the batch, except in gather_forward, where they are output rows.
#pragma once

#include "../core/layout.h"
#include "conversions.h"
#include "kernels.h"

namespace orth {

template <typename V>
struct StreamKernels {
  using T = typename V::T;
  using Reg = typename V::Reg;

  static void pack(const T* x, int64_t ldx, const int32_t* rows, const T* scale, int64_t count,
                   int64_t begin, int64_t end, int64_t lanes, T* out) {
    constexpr int64_t kBlock = 8;
    // Whole cache lines at a time: rows of x are often a power of two apart, so a line that is not
    // used up at once is gone before its second half is wanted.
    constexpr int64_t kLine = 4 * kBlock;
    static const T zeros[kLine] = {};
    int64_t column = begin;
    for (; column + kLine <= end; column += kLine) {
      for (int64_t lane = 0; lane < lanes; lane += kBlock) {
        const T* source[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) {
          source[i] = lane + i < count ? x + rows[lane + i] * ldx + column : zeros;
          if (lane + i + kBlock < count) {
            const T* ahead = x + rows[lane + i + kBlock] * ldx + column;
            __builtin_prefetch(ahead);
            __builtin_prefetch(ahead + kLine / 2);
          }
        }
        for (int64_t block = 0; block < kLine; block += kBlock) {
          V::transpose8(source, out + (column + block) * lanes + lane, lanes);
          for (auto& line : source) line += kBlock;
        }
      }
      if (scale != nullptr) scale_rows(out, column, column + kLine, count, lanes, scale);
    }
    const int64_t rest = column;
    for (; column < end; ++column) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        out[column * lanes + lane] = lane < count ? x[rows[lane] * ldx + column] : T(0);
      }
    }
    if (scale != nullptr) scale_rows(out, rest, end, count, lanes, scale);
  }

  static inline void scale_rows(T* packed, int64_t begin, int64_t end, int64_t count, int64_t lanes,
                                const T* scale) {
    for (int64_t column = begin; column < end; ++column) {
      for (int64_t lane = 0; lane < count; ++lane) packed[column * lanes + lane] *= scale[lane];
    }
  }

  // Dot products of one slice's rows with x, [16].
  template <DType Type>
  static inline void gather_slice(const uint16_t* columns, const char* values, int64_t slots,
                                  const T* x, T* dots) {
    constexpr int kVectors = kSliceRows / V::kWidth;
    Reg sums[kVectors];
    for (auto& sum : sums) sum = V::zero();
    for (int64_t slot = 0; slot < slots; ++slot) {
      __builtin_prefetch(columns + slot * kSliceRows + kAhead);
      __builtin_prefetch(values + (slot * kSliceRows + kAhead) * item_size(Type));
      for (int v = 0; v < kVectors; ++v) {
        const int64_t entry = slot * kSliceRows + v * V::kWidth;
        const Reg value = V::load_as(values + entry * item_size(Type), Type);
        sums[v] = V::fma(value, V::gather(x, columns + entry), sums[v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) V::store(dots + v * V::kWidth, sums[v]);
  }
  static constexpr int64_t kAhead = 1024;

  static void gather_forward(int64_t n, const Stream& stream, const T* x, T alpha, int64_t begin,
                             int64_t end, T* y) {
    const int64_t size = item_size(stream.value_type);
    for (int64_t slice = begin; slice < end; ++slice) {
      const int64_t slot = stream.slice_ptr[slice], slots = stream.slice_ptr[slice + 1] - slot;
      const uint16_t* columns = stream.columns + slot * kSliceRows;
      const char* values = static_cast<const char*>(stream.values) + slot * kSliceRows * size;
      T dots[kSliceRows];
      if (stream.value_type == DType::kFloat16) {
        gather_slice<DType::kFloat16>(columns, values, slots, x, dots);
      } else if (stream.value_type == DType::kFloat32) {
        gather_slice<DType::kFloat32>(columns, values, slots, x, dots);
      } else {
        gather_slice<V::kType>(columns, values, slots, x, dots);
      }
      const int64_t first = slice * kSliceRows;
      const int64_t rows = n - first < kSliceRows ? n - first : kSliceRows;
      for (int64_t r = 0; r < rows; ++r) y[first + r] = V::fma1(alpha, dots[r], y[first + r]);
    }
  }

  // The slice's values as T: in place when they are stored so, else converted into `scratch`.
  static inline const T* slice_values(const Stream& stream, int64_t slice, T* scratch) {
    const int64_t first = int64_t{stream.slice_ptr[slice]} * kSliceRows;
    const int64_t last = int64_t{stream.slice_ptr[slice + 1]} * kSliceRows;
    if (stream.value_type == V::kType) return static_cast<const T*>(stream.values) + first;
    const char* values = static_cast<const char*>(stream.values);
    Conversions<V>::load(values + first * item_size(stream.value_type), stream.value_type, last - first, scratch);
    return scratch;
  }

  template <int L>
  static inline void slice_dots(int64_t k, const uint16_t* columns, const T* values, int64_t slots,
                                const T* chunk, T* dots) {
    constexpr int kVectors = L / V::kWidth;
    for (int64_t r = 0; r < kSliceRows; ++r) {
      Reg sums[kVectors];
      for (auto& sum : sums) sum = V::zero();
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t column = columns[slot * kSliceRows + r];
        if (column >= k) break;
        const Reg value = V::broadcast(values[slot * kSliceRows + r]);
        const T* x = chunk + column * L;
        for (int v = 0; v < kVectors; ++v) {
          sums[v] = V::fma(value, V::load(x + v * V::kWidth), sums[v]);
        }
      }
      for (int v = 0; v < kVectors; ++v) V::store(dots + r * L + v * V::kWidth, sums[v]);
    }
  }

  // y[rows[i], first + r] += alpha[i] * dots[r, i]
  static inline void add_dots(int64_t n, int64_t first, int64_t lanes, int64_t count,
                              const int32_t* rows, const T* alpha, const T* dots, T* y) {
    constexpr int64_t kBlock = 8;
    const int64_t width = n - first < kSliceRows ? n - first : kSliceRows;
    for (int64_t lane = 0; lane < count; lane += kBlock) {
      T block[kBlock * kSliceRows];
      for (int64_t half = 0; half < kSliceRows; half += kBlock) {
        const T* source[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) source[i] = dots + (half + i) * lanes + lane;
        V::transpose8(source, block + half, kSliceRows);
      }
      const int64_t used = count - lane < kBlock ? count - lane : kBlock;
      for (int64_t i = 0; i < used; ++i) {
        T* out = y + rows[lane + i] * n + first;
        const T* line = block + i * kSliceRows;
        if (width == kSliceRows) {
          const Reg factor = V::broadcast(alpha[lane + i]);
          for (int64_t v = 0; v < kSliceRows; v += V::kWidth) {
            V::store(out + v, V::fma(factor, V::load(line + v), V::load(out + v)));
          }
        } else {
          for (int64_t v = 0; v < width; ++v) out[v] = V::fma1(alpha[lane + i], line[v], out[v]);
        }
      }
    }
  }

  static void stream_forward(int64_t n, int64_t k, const Stream& stream, const T* packed,
                             const int32_t* rows, const T* alpha, int64_t count, int64_t begin,
                             int64_t end, T* y, T* scratch) {
    T* dots = scratch;
    T* converted = scratch + kSliceRows * kChunkRows;
    for (int64_t c = 0; c < chunk_count(count); ++c) {
      const int64_t lanes = chunk_lanes(count, c), done = c * kChunkRows;
      const int64_t used = count - done < kChunkRows ? count - done : kChunkRows;
      const T* chunk = packed + done * k;
      for (int64_t slice = begin; slice < end; ++slice) {
        const int64_t slot = stream.slice_ptr[slice], slots = stream.slice_ptr[slice + 1] - slot;
        if (slots == 0) continue;
        const uint16_t* columns = stream.columns + slot * kSliceRows;
        const T* values = slice_values(stream, slice, converted);
        switch (lanes) {
          case 16: slice_dots<16>(k, columns, values, slots, chunk, dots); break;
          case 32: slice_dots<32>(k, columns, values, slots, chunk, dots); break;
          default: slice_dots<64>(k, columns, values, slots, chunk, dots); break;
        }
        add_dots(n, slice * kSliceRows, lanes, used, rows + done, alpha + done, dots, y);
      }
    }
  }

  template <int L>
  static inline void slice_grad_x(int64_t k, int64_t rows, const uint16_t* columns, const T* values,
                                  int64_t slots, const T* grad, T* sums) {
    constexpr int kVectors = L / V::kWidth;
    for (int64_t r = 0; r < rows; ++r) {
      Reg line[kVectors];
      for (int v = 0; v < kVectors; ++v) line[v] = V::load(grad + r * L + v * V::kWidth);
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t column = columns[slot * kSliceRows + r];
        if (column >= k) break;
        const Reg value = V::broadcast(values[slot * kSliceRows + r]);
        T* out = sums + column * L;
        for (int v = 0; v < kVectors; ++v) {
          V::store(out + v * V::kWidth, V::fma(value, line[v], V::load(out + v * V::kWidth)));
        }
      }
    }
  }

  static void stream_grad_x(int64_t n, int64_t k, const Stream& stream, const T* packed,
                            const int32_t* rows, int64_t count, int64_t c, T* grad_x, T* scratch) {
    constexpr int64_t kBlock = 8;
    const int64_t lanes = chunk_lanes(count, c), done = c * kChunkRows;
    const int64_t used = count - done < kChunkRows ? count - done : kChunkRows;
    const T* chunk = packed + done * n;
    T* sums = scratch;
    T* converted = scratch + kChunkRows * k;
    for (int64_t i = 0; i < lanes * k; i += V::kWidth) V::store(sums + i, V::zero());
    for (int64_t slice = 0; slice < slice_count(n); ++slice) {
      const int64_t slot = stream.slice_ptr[slice], slots = stream.slice_ptr[slice + 1] - slot;
      if (slots == 0) continue;
      const int64_t first = slice * kSliceRows;
      const int64_t height = n - first < kSliceRows ? n - first : kSliceRows;
      const uint16_t* columns = stream.columns + slot * kSliceRows;
      const T* values = slice_values(stream, slice, converted);
      const T* grad = chunk + first * lanes;
      switch (lanes) {
        case 16: slice_grad_x<16>(k, height, columns, values, slots, grad, sums); break;
        case 32: slice_grad_x<32>(k, height, columns, values, slots, grad, sums); break;
        default: slice_grad_x<64>(k, height, columns, values, slots, grad, sums); break;
      }
    }
    for (int64_t column = 0; column < k; column += kBlock) {
      for (int64_t lane = 0; lane < used; lane += kBlock) {
        const T* source[kBlock];
        for (int64_t i = 0; i < kBlock; ++i) source[i] = sums + (column + i) * lanes + lane;
        T block[kBlock * kBlock];
        V::transpose8(source, block, kBlock);
        const int64_t height = used - lane < kBlock ? used - lane : kBlock;
        for (int64_t i = 0; i < height; ++i) {
          T* out = grad_x + rows[done + lane + i] * k + column;
          for (int64_t j = 0; j < kBlock; ++j) out[j] += block[i * kBlock + j];
        }
      }
    }
  }

  template <int L>
  static inline void slice_grad_values(int64_t k, int64_t rows, const uint16_t* columns,
                                       int64_t slots, const T* grad, const T* x, bool first, T* out) {
    constexpr int kVectors = L / V::kWidth;
    for (int64_t r = 0; r < kSliceRows; ++r) {
      Reg line[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        line[v] = r < rows ? V::load(grad + r * L + v * V::kWidth) : V::zero();
      }
      for (int64_t slot = 0; slot < slots; ++slot) {
        const int64_t entry = slot * kSliceRows + r;
        const int64_t column = columns[entry];
        if (column >= k) {
          out[entry] = T(0);
          continue;
        }
        const T* values = x + column * L;
        Reg even = V::mul(line[0], V::load(values));
        Reg odd = V::zero();
        for (int v = 1; v < kVectors; ++v) {
          Reg& sum = v % 2 == 0 ? even : odd;
          sum = V::fma(line[v], V::load(values + v * V::kWidth), sum);
        }
        const T dot = V::sum(V::add(even, odd));
        out[entry] = first ? dot : out[entry] + dot;
      }
    }
  }

  static void stream_grad_values(int64_t n, int64_t k, const Stream& stream, const T* packed_grad,
                                 const T* packed_x, int64_t count, int64_t begin, int64_t end,
                                 T* grad_values) {
    for (int64_t c = 0; c < chunk_count(count); ++c) {
      const int64_t lanes = chunk_lanes(count, c), done = c * kChunkRows;
      const T* x = packed_x + done * k;
      for (int64_t slice = begin; slice < end; ++slice) {
        const int64_t slot = stream.slice_ptr[slice], slots = stream.slice_ptr[slice + 1] - slot;
        const int64_t first = slice * kSliceRows;
        const int64_t height = n - first < kSliceRows ? n - first : kSliceRows;
        const uint16_t* columns = stream.columns + slot * kSliceRows;
        const T* grad = packed_grad + done * n + first * lanes;
        T* out = grad_values + slot * kSliceRows;
        switch (lanes) {
          case 16: slice_grad_values<16>(k, height, columns, slots, grad, x, c == 0, out); break;
          case 32: slice_grad_values<32>(k, height, columns, slots, grad, x, c == 0, out); break;
          default: slice_grad_values<64>(k, height, columns, slots, grad, x, c == 0, out); break;
        }
      }
    }
  }
};

}  // namespace orth
