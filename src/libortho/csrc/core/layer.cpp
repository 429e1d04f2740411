#include "layer.h"

#include <memory>
#include <new>
#include <vector>

#include "../cpu/kernels.h"
#include "layout.h"

namespace orth {
namespace {

// Multiply-adds that a thread takes at least.
constexpr int64_t kGrainWork = 1 << 16;
constexpr int64_t kPackColumns = 256;

// Uninitialised memory, aligned so that a packed row is whole cache lines.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlign))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data_, kAlign); }
  T* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  T* data_;
};

template <typename F>
void parallel_run(ParallelFor parallel, int64_t count, int64_t work_per_item, const F& body) {
  if (count == 0) return;
  const Body call = [](void* task, int64_t begin, int64_t end) {
    (*static_cast<const F*>(task))(begin, end);
  };
  const int64_t grain = work_per_item >= kGrainWork ? 1 : kGrainWork / (work_per_item + 1) + 1;
  void* task = const_cast<void*>(static_cast<const void*>(&body));
  if (parallel == nullptr) {
    call(task, 0, count);
  } else {
    parallel(count, grain, call, task);
  }
}

// The rows that a stream acts on, and their alpha.
template <typename T>
struct ActiveRows {
  std::vector<int32_t> rows;
  std::vector<T> alpha;

  ActiveRows(const float* all, int64_t m) {
    for (int64_t i = 0; i < m; ++i) {
      if (all[i] != 0.0f) {
        rows.push_back(static_cast<int32_t>(i));
        alpha.push_back(static_cast<T>(all[i]));
      }
    }
  }
  int64_t count() const { return static_cast<int64_t>(rows.size()); }
};

bool any_open(const float* alpha, int64_t m) {
  for (int64_t i = 0; i < m; ++i) {
    if (alpha[i] != 0.0f) return true;
  }
  return false;
}

int64_t widest_slice(const Stream& stream, int64_t slices) {
  int64_t widest = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t slots = stream.slice_ptr[i + 1] - stream.slice_ptr[i];
    if (slots > widest) widest = slots;
  }
  return widest;
}

template <typename T>
void pack_rows(const T* x, int64_t columns, const ActiveRows<T>& active, bool scaled, T* out,
               ParallelFor parallel) {
  const Kernels<T>& kernels = active_kernels<T>();
  const int64_t blocks = ceil_div(columns, kPackColumns), count = active.count();
  parallel_run(parallel, chunk_count(count) * blocks, kPackColumns * kChunkRows,
               [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / blocks, done = chunk * kChunkRows;
      const int64_t first = item % blocks * kPackColumns;
      const int64_t last = first + kPackColumns < columns ? first + kPackColumns : columns;
      const int64_t used = count - done < kChunkRows ? count - done : kChunkRows;
      kernels.pack(x, columns, active.rows.data() + done,
                   scaled ? active.alpha.data() + done : nullptr, used, first, last,
                   chunk_lanes(count, chunk), out + done * columns);
    }
  });
}

// One stream, ready to be added to any range of output rows of y [M, N].
template <typename T>
class StreamPlan {
 public:
  StreamPlan(int64_t rows, int64_t columns, const Stream& stream, const T* x, int64_t m,
             ParallelFor parallel)
      : rows_(rows), columns_(columns), stream_(stream), active_(stream.alpha, m) {
    if (active_.count() == 0) return;
    if (active_.count() == 1) {
      x_ = std::make_unique<Buffer<T>>(columns + 1);
      const T* row = x + active_.rows[0] * columns;
      for (int64_t k = 0; k < columns; ++k) x_->get()[k] = row[k];
      x_->get()[columns] = T(0);
      return;
    }
    scratch_size_ = kSliceRows * kChunkRows + kSliceRows * widest_slice(stream, slice_count(rows));
    x_ = std::make_unique<Buffer<T>>(packed_size(active_.count(), columns));
    pack_rows(x, columns, active_, false, x_->get(), parallel);
  }

  int64_t active() const { return active_.count(); }

  void add(int64_t begin, int64_t end, T* y) const {
    const Kernels<T>& kernels = active_kernels<T>();
    if (active_.count() == 0) return;
    if (active_.count() == 1) {
      kernels.gather_forward(rows_, stream_, x_->get(), active_.alpha[0], begin, end,
                             y + active_.rows[0] * rows_);
      return;
    }
    const Buffer<T> scratch(scratch_size_);
    kernels.stream_forward(rows_, columns_, stream_, x_->get(), active_.rows.data(),
                           active_.alpha.data(), active_.count(), begin, end, y, scratch.get());
  }

 private:
  int64_t rows_, columns_;
  Stream stream_;
  ActiveRows<T> active_;
  std::unique_ptr<Buffer<T>> x_;
  int64_t scratch_size_ = 0;
};

// Adds the streams to the rows of tiles [begin, end) of y and rounds them to `out`, if given.
template <typename T>
void finish_tiles(const BaseLayer& base, const std::vector<StreamPlan<T>>& plans, DType type,
                  int64_t m, int64_t begin, int64_t end, T* y, void* out) {
  const int64_t n = base.rows, slices = slice_count(n);
  const int64_t slices_per_tile = kTileRows / kSliceRows;
  const int64_t slice_end = end * slices_per_tile < slices ? end * slices_per_tile : slices;
  for (const StreamPlan<T>& plan : plans) plan.add(begin * slices_per_tile, slice_end, y);
  if (out == nullptr) return;
  const int64_t first = begin * kTileRows;
  const int64_t width = (end * kTileRows < n ? end * kTileRows : n) - first;
  for (int64_t i = 0; i < m; ++i) {
    char* line = static_cast<char*>(out) + (i * n + first) * item_size(type);
    active_kernels<T>().store(y + i * n + first, type, width, line);
  }
}

template <typename T>
void layer_forward(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                   const void* x_data, DType x_type, int64_t m, void* y_data, ParallelFor parallel) {
  const Kernels<T>& kernels = active_kernels<T>();
  const int64_t n = base.rows, k = base.columns, tiles = tile_count(n);
  const bool whole = n % kTileRows == 0;
  const bool native = item_size(x_type) == static_cast<int64_t>(sizeof(T));
  const Buffer<T> x_buffer(native ? 0 : m * k);
  const T* x = static_cast<const T*>(x_data);
  if (!native) {
    kernels.load(x_data, x_type, m * k, x_buffer.get());
    x = x_buffer.get();
  }
  // Sums are kept in T until every stream has been added, then rounded once.
  const Buffer<T> y_buffer(native ? 0 : m * n);
  T* y = native ? static_cast<T*>(y_data) : y_buffer.get();
  std::vector<StreamPlan<T>> plans;
  plans.reserve(static_cast<size_t>(stream_count));
  for (int64_t s = 0; s < stream_count; ++s) plans.emplace_back(n, k, streams[s], x, m, parallel);

  parallel_run(parallel, tiles, m * k * kTileRows, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(base.group_size * kTileRows + (whole ? 0 : m * kTileRows));
    const int64_t last_whole = whole || end < tiles ? end : end - 1;
    kernels.base_forward(base, x, m, begin, last_whole, y, n, scratch.get());
    if (last_whole < end) {  // the tile that reaches beyond row N
      BaseLayer tail = base;
      tail.tiles += last_whole * kTileRows * k / kTileInputs;
      tail.scales = static_cast<const char*>(base.scales) +
                    last_whole * (k / base.group_size) * kTileRows * item_size(base.scale_type);
      T* part = scratch.get() + base.group_size * kTileRows;
      kernels.base_forward(tail, x, m, 0, 1, part, kTileRows, scratch.get());
      const int64_t first = last_whole * kTileRows;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t r = first; r < n; ++r) y[i * n + r] = part[i * kTileRows + r - first];
      }
    }
    finish_tiles(base, plans, x_type, m, begin, end, y, native ? nullptr : y_data);
  });
}

// Rows of bf16 that are packed at once, and share a decoding.
constexpr int64_t kPairChunkRows = 128;

// bf16 or fp16 rows on a CPU that multiplies pairs of bf16; any M.
void pairs_layer_forward(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                         const char* x, DType x_type, int64_t m, char* y, ParallelFor parallel) {
  const Kernels<float>& kernels = active_kernels<float>();
  const int64_t n = base.rows, k = base.columns, item = item_size(x_type);
  const int64_t pieces = x_type == DType::kFloat16 ? 2 : 1;
  const int64_t step = m < kPairChunkRows / pieces ? m : kPairChunkRows / pieces;
  const Buffer<uint32_t> pairs(step * pieces * k / 2);
  const Buffer<float> sums(step * n);
  for (int64_t first = 0; first < m; first += step) {
    const int64_t rows = first + step < m ? step : m - first;
    const char* part = x + first * k * item;
    parallel_run(parallel, ceil_div(k, kPackColumns), rows * pieces * kPackColumns,
                 [&](int64_t begin, int64_t end) {
      const int64_t last = end * kPackColumns < k ? end * kPackColumns : k;
      kernels.pack_pairs(part, x_type, rows, k, pieces, begin * kPackColumns, last, pairs.get());
    });
    bool open = false;
    for (int64_t s = 0; s < stream_count; ++s) open = open || any_open(streams[s].alpha + first, rows);
    const Buffer<float> wide(open ? rows * k : 0);
    if (open) kernels.load(part, x_type, rows * k, wide.get());
    std::vector<StreamPlan<float>> plans;
    plans.reserve(static_cast<size_t>(stream_count));
    for (int64_t s = 0; s < stream_count; ++s) {
      Stream stream = streams[s];
      stream.alpha += first;
      plans.emplace_back(n, k, stream, wide.get(), rows, parallel);
    }
    parallel_run(parallel, tile_count(n), rows * k * kTileRows, [&](int64_t begin, int64_t end) {
      const Buffer<uint32_t> scratch((base.group_size / 2 + rows * pieces) * kTileRows);
      kernels.pairs_forward(base, pairs.get(), rows, pieces, begin, end, sums.get(), scratch.get());
      finish_tiles(base, plans, x_type, rows, begin, end, sums.get(), y + first * n * item);
    });
  }
}

}  // namespace

void orth_layer_forward(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                        const void* x, DType x_type, int64_t m, void* y, ParallelFor parallel) {
  if (m == 0) return;
  if (x_type == DType::kFloat64) {
    layer_forward<double>(base, streams, stream_count, x, x_type, m, y, parallel);
  } else if (orth_multiplies_pairs(x_type)) {
    pairs_layer_forward(base, streams, stream_count, static_cast<const char*>(x), x_type, m,
                        static_cast<char*>(y), parallel);
  } else {
    layer_forward<float>(base, streams, stream_count, x, x_type, m, y, parallel);
  }
}

bool orth_multiplies_pairs(DType x_type) {
  return (x_type == DType::kBFloat16 || x_type == DType::kFloat16) &&
         active_kernels<float>().pairs_forward != nullptr;
}

template <typename T>
void orth_dequantize(const BaseLayer& base, T* w, ParallelFor parallel) {
  const Kernels<T>& kernels = active_kernels<T>();
  parallel_run(parallel, tile_count(base.rows), base.columns * kTileRows,
               [&](int64_t begin, int64_t end) { kernels.dequantize(base, begin, end, w); });
}

template <typename T>
void orth_stream_forward(int64_t rows, int64_t columns, const Stream& stream, const T* x, int64_t m,
                         T* y, ParallelFor parallel) {
  const StreamPlan<T> plan(rows, columns, stream, x, m, parallel);
  if (plan.active() == 0) return;
  parallel_run(parallel, slice_count(rows), kGrainWork / 8,
               [&](int64_t begin, int64_t end) { plan.add(begin, end, y); });
}

template <typename T>
void orth_stream_fold(int64_t rows, int64_t columns, const Stream& stream, T alpha, T* w,
                      ParallelFor parallel) {
  parallel_run(parallel, slice_count(rows), kGrainWork / 64, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      for (int64_t slot = stream.slice_ptr[slice]; slot < stream.slice_ptr[slice + 1]; ++slot) {
        for (int64_t r = 0; r < kSliceRows; ++r) {
          const int64_t entry = slot * kSliceRows + r;
          if (stream.columns[entry] >= columns) continue;
          T& target = w[(slice * kSliceRows + r) * columns + stream.columns[entry]];
          target += alpha * load_item<T>(stream.values, stream.value_type, entry);
        }
      }
    }
  });
}

template <typename T>
void orth_stream_backward(int64_t rows, int64_t columns, const Stream& stream, const T* grad,
                          const T* x, int64_t m, T* grad_x, T* grad_values, ParallelFor parallel) {
  const Kernels<T>& kernels = active_kernels<T>();
  const ActiveRows<T> active(stream.alpha, m);
  const int64_t count = active.count(), slices = slice_count(rows);
  if (count == 0) {
    if (grad_values == nullptr) return;
    for (int64_t i = 0; i < stream.slice_ptr[slices] * kSliceRows; ++i) grad_values[i] = T(0);
    return;
  }
  const Buffer<T> packed_grad(packed_size(count, rows));
  pack_rows(grad, rows, active, true, packed_grad.get(), parallel);
  if (grad_values != nullptr) {
    const Buffer<T> packed_x(packed_size(count, columns));
    pack_rows(x, columns, active, false, packed_x.get(), parallel);
    parallel_run(parallel, slices, kGrainWork / 8, [&](int64_t begin, int64_t end) {
      kernels.stream_grad_values(rows, columns, stream, packed_grad.get(), packed_x.get(), count,
                                 begin, end, grad_values);
    });
  }
  if (grad_x == nullptr) return;
  const int64_t converted = kSliceRows * widest_slice(stream, slices);
  parallel_run(parallel, chunk_count(count), kGrainWork, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(kChunkRows * columns + converted);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      kernels.stream_grad_x(rows, columns, stream, packed_grad.get(), active.rows.data(), count,
                            chunk, grad_x, scratch.get());
    }
  });
}

template void orth_dequantize<float>(const BaseLayer&, float*, ParallelFor);
template void orth_dequantize<double>(const BaseLayer&, double*, ParallelFor);
template void orth_stream_forward<float>(int64_t, int64_t, const Stream&, const float*, int64_t,
                                         float*, ParallelFor);
template void orth_stream_forward<double>(int64_t, int64_t, const Stream&, const double*, int64_t,
                                          double*, ParallelFor);
template void orth_stream_fold<float>(int64_t, int64_t, const Stream&, float, float*, ParallelFor);
template void orth_stream_fold<double>(int64_t, int64_t, const Stream&, double, double*,
                                       ParallelFor);
template void orth_stream_backward<float>(int64_t, int64_t, const Stream&, const float*,
                                          const float*, int64_t, float*, float*, ParallelFor);
template void orth_stream_backward<double>(int64_t, int64_t, const Stream&, const double*,
                                           const double*, int64_t, double*, double*, ParallelFor);

}  // namespace orth
