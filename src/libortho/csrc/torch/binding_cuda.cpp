// torch.ops.libortho.dual_linear on CUDA tensors: argument checks and the choice of route.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <atomic>
#include <utility>
#include <vector>

#include "../core/layout.h"
#include "../cuda/layer_cuda.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Up to here the INT4 weights are streamed, 64 rows at a time; above, dequantising once and a matmul win.
constexpr int64_t kStreamedRows = 384;

std::atomic<int64_t> native_calls{0};
std::atomic<int64_t> dense_calls{0};

bool is_served(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

orth::DType dtype_of(ScalarType type) {
  return type == ScalarType::Half ? orth::DType::kFloat16 : orth::DType::kBFloat16;
}

// Contiguous, and at an address that 16-byte loads can take.
Tensor packed(const Tensor& tensor) {
  const Tensor whole = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 16 == 0;
  return aligned ? whole : torch::stable::clone(whole);
}

void check(const Tensor& tensor, ScalarType type, int32_t device, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", torch::headeronly::toString(type),
                  ", found ", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name,
                  ": expected a tensor on the device of x, cuda:", device);
}

struct Operands {
  std::vector<Tensor> held;
  orth::BaseLayer base;
  std::vector<orth::Stream> streams;

  template <typename T>
  const T* hold(const Tensor& tensor) {
    held.push_back(packed(tensor));
    return static_cast<const T*>(held.back().const_data_ptr());
  }

  Operands(const Tensor& x, const Tensor& tiles, const Tensor& scales, int64_t rows, int64_t group_size,
           const std::vector<Tensor>& slice_ptr, const std::vector<Tensor>& columns,
           const std::vector<Tensor>& values, const Tensor& alpha) {
    const int32_t device = x.get_device_index();
    const int64_t m = x.size(0);
    check(tiles, ScalarType::Byte, device, "tiles");
    STD_TORCH_CHECK(group_size == 32 || group_size == 64 || group_size == 128,
                    "group_size: expected 32, 64 or 128, found ", group_size);
    STD_TORCH_CHECK(rows > 0 && tiles.dim() == 3 && tiles.size(0) == orth::tile_count(rows) &&
                        tiles.size(2) == orth::kTileWords * 4,
                    "tiles: expected [", orth::tile_count(rows), ", K/8, 128] for ", rows, " rows");
    const int64_t k = tiles.size(1) * orth::kTileInputs;
    STD_TORCH_CHECK(k > 0 && k % group_size == 0 && k <= orth::kMaxColumns, "tiles: K = ", k,
                    " must be a multiple of group_size ", group_size, " and at most ", orth::kMaxColumns);
    STD_TORCH_CHECK(is_served(scales.scalar_type()), "scales: expected float16 or bfloat16");
    check(scales, scales.scalar_type(), device, "scales");
    STD_TORCH_CHECK(scales.dim() == 3 && scales.size(0) == tiles.size(0) &&
                        scales.size(1) == k / group_size && scales.size(2) == orth::kTileRows,
                    "scales: expected [", tiles.size(0), ", ", k / group_size, ", 32]");
    STD_TORCH_CHECK(x.size(1) == k, "x: expected [M, ", k, "]");
    base = {hold<uint32_t>(tiles), hold<void>(scales), dtype_of(scales.scalar_type()), rows, k, group_size};

    const int64_t count = static_cast<int64_t>(values.size());
    STD_TORCH_CHECK(slice_ptr.size() == values.size() && columns.size() == values.size(),
                    "streams: slice_ptr, columns and values differ in number: ", slice_ptr.size(), ", ",
                    columns.size(), ", ", values.size());
    check(alpha, ScalarType::Float, device, "alpha");
    STD_TORCH_CHECK(alpha.dim() == 2 && alpha.size(0) == count && alpha.size(1) == m, "alpha: expected [",
                    count, ", ", m, "]");
    const float* alphas = hold<float>(alpha);
    for (int64_t s = 0; s < count; ++s) {
      check(slice_ptr[s], ScalarType::Int, device, "slice_ptr");
      check(columns[s], ScalarType::Short, device, "columns");
      check(values[s], ScalarType::Half, device, "values");
      STD_TORCH_CHECK(slice_ptr[s].dim() == 1 && slice_ptr[s].size(0) == orth::slice_count(rows) + 1,
                      "slice_ptr: expected [", orth::slice_count(rows) + 1, "] in stream ", s);
      STD_TORCH_CHECK(columns[s].dim() == 2 && columns[s].size(1) == orth::kSliceRows &&
                          values[s].dim() == 2 && values[s].size(1) == orth::kSliceRows &&
                          values[s].size(0) == columns[s].size(0),
                      "columns and values: expected [S, 16] both in stream ", s);
      streams.push_back({hold<int32_t>(slice_ptr[s]), hold<uint16_t>(columns[s]), hold<void>(values[s]),
                         orth::DType::kFloat16, alphas + s * m});
    }
  }

  int64_t count() const { return static_cast<int64_t>(streams.size()); }
};

void* current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

void must(const char* error) { STD_TORCH_CHECK(error == nullptr, "libortho on CUDA: ", error); }

// The overload with `out` is not on autocast's lists, which would round the operands.
void matmul_into(Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// What is not served natively here: x in float32 or float64, and values while they are trained.
Tensor reference(const Tensor& x, const Tensor& tiles, const Tensor& scales, int64_t rows, int64_t group_size,
                 const std::vector<Tensor>& slice_ptr, const std::vector<Tensor>& columns,
                 const std::vector<Tensor>& values, const Tensor& alpha) {
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{from(x), from(tiles), from(scales), from(rows), from(group_size),
                                    from(slice_ptr), from(columns), from(values), from(alpha)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("libortho::dual_linear_reference", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor dual_linear(Tensor x, Tensor tiles, Tensor scales, int64_t rows, int64_t group_size,
                   std::vector<Tensor> slice_ptr, std::vector<Tensor> columns, std::vector<Tensor> values,
                   Tensor alpha) {
  STD_TORCH_CHECK(x.dim() == 2, "x: expected [M, K], found ", x.dim(), " dimensions");
  bool served = is_served(x.scalar_type());
  for (const Tensor& value : values) served = served && value.scalar_type() == ScalarType::Half;
  if (!served) return reference(x, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha);
  native_calls.fetch_add(1, std::memory_order_relaxed);
  const Operands operands(x, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha);
  const int64_t m = x.size(0);
  Tensor y = torch::stable::new_empty(x, {m, rows});
  if (m == 0) return y;
  const Tensor input = packed(x);
  const orth::DType type = dtype_of(x.scalar_type());
  void* stream = current_stream(x.get_device_index());
  if (m <= kStreamedRows) {
    must(orth::orth_layer_forward_cuda(operands.base, operands.streams.data(), operands.count(),
                                       input.const_data_ptr(), type, m, y.mutable_data_ptr(), stream));
    return y;
  }
  dense_calls.fetch_add(1, std::memory_order_relaxed);
  const Tensor w = torch::stable::new_empty(x, {rows, operands.base.columns});
  must(orth::orth_dequantize_cuda(operands.base, type, w.mutable_data_ptr(), stream));
  matmul_into(y, input, torch::stable::transpose(w, 0, 1));
  if (operands.count() > 0) {
    must(orth::orth_streams_forward_cuda(operands.base, operands.streams.data(), operands.count(),
                                         input.const_data_ptr(), type, m, y.mutable_data_ptr(), stream));
  }
  return y;
}

int64_t cuda_op_calls() { return native_calls.load(std::memory_order_relaxed); }
int64_t cuda_dense_calls() { return dense_calls.load(std::memory_order_relaxed); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(libortho, library) {
  library.def("cuda_op_calls() -> int");
  library.def("cuda_dense_calls() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(libortho, CUDA, library) { library.impl("dual_linear", TORCH_BOX(&dual_linear)); }

STABLE_TORCH_LIBRARY_IMPL(libortho, CompositeExplicitAutograd, library) {
  library.impl("cuda_op_calls", TORCH_BOX(&cuda_op_calls));
  library.impl("cuda_dense_calls", TORCH_BOX(&cuda_dense_calls));
}
