// torch.ops.libortho: schemas, argument checks and the choice of route. Arithmetic lives below.
#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "operands.h"

namespace {

using orth::matmul_into;
using orth::Operands;
using orth::packed;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Up to here the INT4 weights are streamed; above, they are dequantised once for a matmul, unless the CPU
// multiplies pairs of bf16.
constexpr int64_t kStreamedRows = 16;

std::atomic<int64_t> native_calls{0};
std::atomic<int64_t> dense_calls{0};

void run_parallel(int64_t count, int64_t grain, orth::Body body, void* task) {
  torch::stable::parallel_for(0, count, grain, [body, task](int64_t begin, int64_t end) {
    body(task, begin, end);
  });
}

Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

void check_rows(const Tensor& x, int64_t columns, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == columns, name, ": expected [M, ", columns, "], found ",
                  orth::shape_of(x));
  STD_TORCH_CHECK(x.is_cpu(), name, ": expected a CPU tensor, found one on ", orth::device_of(x));
}

template <typename T>
Tensor dequantized(const Operands& operands, const Tensor& like, ScalarType type) {
  Tensor w = torch::stable::new_empty(like, {operands.base.rows, operands.base.columns}, type);
  orth::orth_dequantize<T>(operands.base, static_cast<T*>(w.mutable_data_ptr()), run_parallel);
  return w;
}

template <typename T>
Tensor dense_forward(const Operands& operands, const Tensor& x, ScalarType type) {
  const Tensor wide = packed(converted(x, type));
  const int64_t m = x.size(0), n = operands.base.rows, k = operands.base.columns;
  const Tensor w = dequantized<T>(operands, x, type);
  Tensor y = torch::stable::new_empty(x, {m, n}, type);
  matmul_into(y, wide, torch::stable::transpose(w, 0, 1));
  for (const orth::Stream& stream : operands.streams) {
    orth::orth_stream_forward<T>(n, k, stream, static_cast<const T*>(wide.const_data_ptr()), m,
                                 static_cast<T*>(y.mutable_data_ptr()), run_parallel);
  }
  return converted(y, x.scalar_type());
}

Tensor dual_linear(Tensor x, Tensor tiles, Tensor scales, int64_t rows, int64_t group_size,
                   std::vector<Tensor> slice_ptr, std::vector<Tensor> columns,
                   std::vector<Tensor> values, Tensor alpha) {
  STD_TORCH_CHECK(x.dim() == 2, "x: expected [M, K], found ", orth::shape_of(x));
  const int64_t m = x.size(0);
  const orth::DType type = orth::dtype_of(x, "x");
  const bool wide = type == orth::DType::kFloat64;
  const Operands operands(x, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha);
  check_rows(x, operands.base.columns, "x");
  native_calls.fetch_add(1, std::memory_order_relaxed);
  if (m > kStreamedRows && !orth::orth_multiplies_pairs(type)) {
    dense_calls.fetch_add(1, std::memory_order_relaxed);
    return wide ? dense_forward<double>(operands, x, ScalarType::Double)
                : dense_forward<float>(operands, x, ScalarType::Float);
  }
  const Tensor input = packed(x);
  Tensor y = torch::stable::new_empty(x, {m, rows});
  orth::orth_layer_forward(operands.base, operands.streams.data(), operands.count(), input.const_data_ptr(), type, m,
                           y.mutable_data_ptr(), run_parallel);
  return y;
}

template <typename T>
std::tuple<Tensor, std::vector<Tensor>> backward(const Operands& operands, const Tensor& grad,
                                                 const std::optional<Tensor>& x,
                                                 const std::vector<Tensor>& values, bool need_x,
                                                 const std::vector<bool>& need_values,
                                                 ScalarType type) {
  const int64_t m = grad.size(0), n = operands.base.rows, k = operands.base.columns;
  const Tensor g = packed(converted(grad, type));
  Tensor grad_x = torch::stable::new_empty(grad, {need_x ? m : 0, k}, type);
  // A stream that is open alike on every row joins the weights; one matmul then serves both.
  std::vector<bool> folded(values.size(), false);
  if (need_x && m > 0) {
    Tensor w = dequantized<T>(operands, grad, type);
    for (size_t s = 0; s < values.size(); ++s) {
      const orth::Stream& stream = operands.streams[s];
      folded[s] = stream.alpha[0] != 0.0f &&
                  std::all_of(stream.alpha, stream.alpha + m,
                              [&](float alpha) { return alpha == stream.alpha[0]; });
      if (folded[s]) {
        orth::orth_stream_fold<T>(n, k, stream, static_cast<T>(stream.alpha[0]),
                                  static_cast<T*>(w.mutable_data_ptr()), run_parallel);
      }
    }
    matmul_into(grad_x, g, w);
  }
  std::optional<Tensor> wide;
  if (x.has_value()) wide = packed(converted(*x, type));

  std::vector<Tensor> grad_values;
  for (size_t s = 0; s < values.size(); ++s) {
    const int64_t slots = need_values[s] ? values[s].size(0) : 0;
    Tensor out = torch::stable::new_empty(grad, {slots, orth::kSliceRows}, type);
    const bool add_x = need_x && !folded[s];
    if (add_x || need_values[s]) {
      orth::orth_stream_backward<T>(
          n, k, operands.streams[s], static_cast<const T*>(g.const_data_ptr()),
          need_values[s] ? static_cast<const T*>(wide->const_data_ptr()) : nullptr, m,
          add_x ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr,
          need_values[s] ? static_cast<T*>(out.mutable_data_ptr()) : nullptr, run_parallel);
    }
    grad_values.push_back(converted(out, values[s].scalar_type()));
  }
  return {converted(grad_x, grad.scalar_type()), grad_values};
}

std::tuple<Tensor, std::vector<Tensor>> dual_linear_backward(
    Tensor grad, std::optional<Tensor> x, Tensor tiles, Tensor scales, int64_t rows,
    int64_t group_size, std::vector<Tensor> slice_ptr, std::vector<Tensor> columns,
    std::vector<Tensor> values, Tensor alpha, bool need_x, std::vector<bool> need_values) {
  const bool wide = orth::dtype_of(grad, "grad") == orth::DType::kFloat64;
  STD_TORCH_CHECK(grad.dim() == 2, "grad: expected [M, N], found ", orth::shape_of(grad));
  const Operands operands(grad, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha);
  check_rows(grad, rows, "grad");
  STD_TORCH_CHECK(need_values.size() == values.size(), "need_values: expected ", values.size(),
                  " flags, found ", need_values.size());
  bool any = false;
  for (const bool need : need_values) any = any || need;
  STD_TORCH_CHECK(!any || x.has_value(), "x: needed for the gradient of values");
  if (x.has_value()) {
    check_rows(*x, operands.base.columns, "x");
    STD_TORCH_CHECK(x->size(0) == grad.size(0) && x->scalar_type() == grad.scalar_type(),
                    "x: expected the rows and dtype of grad");
  }
  return wide ? backward<double>(operands, grad, x, values, need_x, need_values, ScalarType::Double)
              : backward<float>(operands, grad, x, values, need_x, need_values, ScalarType::Float);
}

// y += sum_s alpha_s (x ortho_s^T) on the rows that are open; others keep their bits. `alpha` is
// [streams, T >= M] and `which` the row of each stream in it.
void add_streams(Tensor y, Tensor x, Tensor alpha, std::vector<int64_t> which,
                 std::vector<Tensor> slice_ptr, std::vector<Tensor> columns,
                 std::vector<Tensor> values) {
  orth::dtype_of(x, "x");
  orth::dtype_of(y, "y");
  STD_TORCH_CHECK(x.is_cpu() && y.is_cpu(), "x and y: expected CPU tensors");
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && y.size(0) == x.size(0) &&
                      y.scalar_type() == x.scalar_type(),
                  "y: expected [M, N] in the rows and dtype of x");
  const int64_t m = x.size(0), n = y.size(1), k = x.size(1);
  STD_TORCH_CHECK(n > 0 && k > 0 && k <= orth::kMaxColumns, "x: expected 1 to ",
                  orth::kMaxColumns, " columns, found ", k);
  const orth::Site site(x);
  site.check(alpha, ScalarType::Float, "alpha");
  STD_TORCH_CHECK(alpha.dim() == 2 && alpha.size(1) >= m && alpha.is_contiguous(),
                  "alpha: expected contiguous [streams, ", m, " or more]");
  STD_TORCH_CHECK(which.size() == values.size() && slice_ptr.size() == values.size() &&
                      columns.size() == values.size(),
                  "streams: which, slice_ptr, columns and values differ in number");
  const float* alphas = static_cast<const float*>(alpha.const_data_ptr());
  std::vector<Tensor> held;
  std::vector<orth::Stream> open;
  for (size_t s = 0; s < values.size(); ++s) {
    STD_TORCH_CHECK(which[s] >= 0 && which[s] < alpha.size(0), "which: no row ", which[s]);
    const float* row = alphas + which[s] * alpha.size(1);
    if (std::all_of(row, row + m, [](float value) { return value == 0.0f; })) continue;
    const orth::DType type = orth::check_stream(site, slice_ptr[s], columns[s], values[s], n, false, s);
    for (const Tensor& part : {slice_ptr[s], columns[s], values[s]}) held.push_back(packed(part));
    const Tensor* parts = &held[held.size() - 3];
    open.push_back({static_cast<const int32_t*>(parts[0].const_data_ptr()),
                    static_cast<const uint16_t*>(parts[1].const_data_ptr()),
                    parts[2].const_data_ptr(), type, row});
  }
  if (open.empty()) return;
  const Tensor wide_x = packed(converted(x, ScalarType::Float));
  const bool in_place = y.scalar_type() == ScalarType::Float && y.is_contiguous();
  Tensor wide_y = in_place ? y : packed(converted(y, ScalarType::Float));
  for (const orth::Stream& stream : open) {
    orth::orth_stream_forward<float>(n, k, stream,
                                     static_cast<const float*>(wide_x.const_data_ptr()), m,
                                     static_cast<float*>(wide_y.mutable_data_ptr()), run_parallel);
  }
  if (!in_place) torch::stable::copy_(y, wide_y);
}

int64_t native_op_calls() { return native_calls.load(std::memory_order_relaxed); }
int64_t dense_route_calls() { return dense_calls.load(std::memory_order_relaxed); }
int64_t isa() { return static_cast<int64_t>(orth::active_isa()); }

}  // namespace

// libortho/ops/schema.py holds the same schemas for machines without this library.
STABLE_TORCH_LIBRARY(libortho, library) {
  library.def(
      "dual_linear(Tensor x, Tensor tiles, Tensor scales, int rows, int group_size, "
      "Tensor[] slice_ptr, Tensor[] columns, Tensor[] values, Tensor alpha) -> Tensor");
  library.def(
      "dual_linear_backward(Tensor grad, Tensor? x, Tensor tiles, Tensor scales, int rows, "
      "int group_size, Tensor[] slice_ptr, Tensor[] columns, Tensor[] values, Tensor alpha, "
      "bool need_x, bool[] need_values) -> (Tensor, Tensor[])");
  library.def(
      "add_streams(Tensor(a!) y, Tensor x, Tensor alpha, int[] which, Tensor[] slice_ptr, "
      "Tensor[] columns, Tensor[] values) -> ()");
  library.def("native_op_calls() -> int");
  library.def("dense_route_calls() -> int");
  library.def("isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(libortho, CPU, library) {
  library.impl("dual_linear", TORCH_BOX(&dual_linear));
  library.impl("dual_linear_backward", TORCH_BOX(&dual_linear_backward));
  library.impl("add_streams", TORCH_BOX(&add_streams));
}

STABLE_TORCH_LIBRARY_IMPL(libortho, CompositeExplicitAutograd, library) {
  library.impl("native_op_calls", TORCH_BOX(&native_op_calls));
  library.impl("dense_route_calls", TORCH_BOX(&dense_route_calls));
  library.impl("isa", TORCH_BOX(&isa));
}
