// The dual-stream linear layer without torch:
//
//   y[m, n] = sum_k x[m, k] base[n, k]  +  sum_s alpha_s[m] sum_k x[m, k] ortho_s[n, k]
//
// A row m with alpha_s[m] == 0 never touches stream s. Sums run in float (double for double x) and
// are rounded once to the type of x. Results do not depend on the number of threads. Layouts are
// those of layout.h; pointers need no alignment; rows are contiguous. Column indices are trusted
// (refused at load when out of range).
#pragma once

#include <cstdint>

#include "numeric.h"

namespace orth {

struct BaseLayer {
  const uint32_t* tiles;
  const void* scales;
  DType scale_type;    // kFloat16 or kBFloat16
  int64_t rows;        // N, output features
  int64_t columns;     // K, input features: a multiple of group_size, at most 65535
  int64_t group_size;  // 32, 64 or 128
};

struct Stream {
  const int32_t* slice_ptr;
  const uint16_t* columns;
  const void* values;
  DType value_type;    // kFloat16 or kFloat32; kFloat64 with double x
  const float* alpha;  // [M]
};

// Runs body(task, begin, end) over parts of [0, count), at least `grain` items in each.
using Body = void (*)(void* task, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t count, int64_t grain, Body body, void* task);

// The whole layer for any M, the INT4 weights streamed. x: [M, K], y: [M, N], both of x_type.
// `parallel` may be null: one thread.
void orth_layer_forward(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                        const void* x, DType x_type, int64_t m, void* y, ParallelFor parallel);

// Whether this CPU multiplies rows of that type as pairs of bf16; a caller then takes the whole layer
// at any M.
bool orth_multiplies_pairs(DType x_type);

// The parts from which a caller with a fast matmul of its own composes large batches; T is float or
// double. w: [N, K], each element the exact product code * scale.
template <typename T>
void orth_dequantize(const BaseLayer& base, T* w, ParallelFor parallel);

// y[m, n] += alpha[m] sum_k x[m, k] ortho[n, k] for the rows with alpha[m] != 0.
template <typename T>
void orth_stream_forward(int64_t rows, int64_t columns, const Stream& stream, const T* x, int64_t m,
                         T* y, ParallelFor parallel);

// w[n, k] += alpha ortho[n, k]: the stream for every row of a batch at once.
template <typename T>
void orth_stream_fold(int64_t rows, int64_t columns, const Stream& stream, T alpha, T* w,
                      ParallelFor parallel);

// Gradients of one stream from grad = dL/dy [M, N]; each output may be null.
//   grad_x[m, k]   += alpha[m] sum_n grad[m, n] ortho[n, k]   (rows with alpha[m] != 0)
//   grad_values[j]  = sum_m alpha[m] grad[m, n_j] x[m, k_j]   (those rows; 0 at pads), [S, 16]
// x is read only when grad_values is wanted.
template <typename T>
void orth_stream_backward(int64_t rows, int64_t columns, const Stream& stream, const T* grad,
                          const T* x, int64_t m, T* grad_x, T* grad_values, ParallelFor parallel);

}  // namespace orth
