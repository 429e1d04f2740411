// torch.ops.libortho.dual_linear on CUDA tensors: argument checks and the choice of route.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <array>
#include <atomic>
#include <vector>

#include "../cuda/alignment.h"
#include "../cuda/layer_cuda.h"
#include "operands.h"

namespace {

using orth::Operands;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Up to here the INT4 weights are streamed, 64 rows at a time; above, they are dequantised once for a
// matmul.
constexpr int64_t kStreamedRows = 384;

std::atomic<int64_t> native_calls{0};
std::atomic<int64_t> dense_calls{0};

bool is_served(ScalarType type) { return type == ScalarType::Half || type == ScalarType::BFloat16; }

// x may be a view at any address; what is stored is refused where kernels cannot load it (alignment.h).
Tensor aligned(const Tensor& x) {
  const Tensor whole = orth::packed(x);
  return orth::misaligned(whole.const_data_ptr(), orth::kXAlignment, "x") == nullptr ? whole : torch::stable::clone(whole);
}

void* current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

void must(const char* error) { STD_TORCH_CHECK(error == nullptr, "libortho on CUDA: ", error); }

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

void forward(const Operands& operands, const Tensor& x, Tensor& y) {
  const int64_t m = x.size(0);
  const Tensor input = aligned(x);
  const orth::DType type = orth::dtype_of(x, "x");
  void* stream = current_stream(x.get_device_index());
  if (m <= kStreamedRows) {
    must(orth::orth_layer_forward_cuda(operands.base, operands.streams.data(), operands.count(),
                                       input.const_data_ptr(), type, m, y.mutable_data_ptr(), stream));
    return;
  }
  const Tensor w = torch::stable::new_empty(x, {operands.base.rows, operands.base.columns});
  must(orth::orth_dequantize_cuda(operands.base, type, w.mutable_data_ptr(), stream));
  orth::matmul_into(y, input, torch::stable::transpose(w, 0, 1));
  if (operands.count() > 0) {
    must(orth::orth_streams_forward_cuda(operands.base, operands.streams.data(), operands.count(),
                                         input.const_data_ptr(), type, m, y.mutable_data_ptr(), stream));
  }
  dense_calls.fetch_add(1, std::memory_order_relaxed);
}

Tensor dual_linear(Tensor x, Tensor tiles, Tensor scales, int64_t rows, int64_t group_size,
                   std::vector<Tensor> slice_ptr, std::vector<Tensor> columns, std::vector<Tensor> values,
                   Tensor alpha) {
  STD_TORCH_CHECK(x.dim() == 2, "x: expected [M, K], found ", orth::shape_of(x));
  bool served = is_served(x.scalar_type());
  for (const Tensor& value : values) served = served && value.scalar_type() == ScalarType::Half;
  if (!served) return reference(x, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha);
  const Operands operands(x, tiles, scales, rows, group_size, slice_ptr, columns, values, alpha);
  STD_TORCH_CHECK(x.size(1) == operands.base.columns, "x: expected [M, ", operands.base.columns, "], found ",
                  orth::shape_of(x));
  Tensor y = torch::stable::new_empty(x, {x.size(0), rows});
  if (x.size(0) > 0) forward(operands, x, y);
  native_calls.fetch_add(1, std::memory_order_relaxed);
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
