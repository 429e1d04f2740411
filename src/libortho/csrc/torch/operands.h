// What the ops for CPU and CUDA tensors share: checks of arguments, and the pointers behind them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <string>
#include <vector>

#include "../core/layer.h"
#include "../core/layout.h"

namespace orth {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, float16 or bfloat16, found ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
  return DType::kFloat32;
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "another device, ") + std::to_string(tensor.get_device_index());
}

inline std::string shape_of(const Tensor& tensor) {
  std::string text;
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d == 0 ? "" : ", ") + std::to_string(tensor.size(d));
  return "[" + text + "]";
}

// Where the tensors of a call lie: on the CPU, or on one CUDA device.
class Site {
 public:
  explicit Site(const Tensor& x) : cpu_(x.is_cpu()), index_(cpu_ ? -1 : x.get_device_index()) {}

  void check(const Tensor& tensor, const char* name) const {
    const bool here = cpu_ ? tensor.is_cpu() : tensor.is_cuda() && tensor.get_device_index() == index_;
    STD_TORCH_CHECK(here, name, ": expected a tensor on the device of x, ",
                    cpu_ ? "cpu" : "cuda:" + std::to_string(index_), ", found one on ", device_of(tensor));
  }

  void check(const Tensor& tensor, ScalarType wanted, const char* name) const {
    STD_TORCH_CHECK(tensor.scalar_type() == wanted, name, ": expected ",
                    torch::headeronly::toString(wanted), ", found ",
                    torch::headeronly::toString(tensor.scalar_type()));
    check(tensor, name);
  }

 private:
  bool cpu_;
  int32_t index_;
};

// Without a call of the dispatcher where nothing is to be done.
inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The tensors of one stream of `rows` output features; returns the type of its values. `wide`: x is float64.
inline DType check_stream(const Site& site, const Tensor& slice_ptr, const Tensor& columns,
                          const Tensor& values, int64_t rows, bool wide, int64_t s) {
  site.check(slice_ptr, ScalarType::Int, "slice_ptr");
  site.check(columns, ScalarType::Short, "columns");
  site.check(values, "values");
  STD_TORCH_CHECK(slice_ptr.dim() == 1 && slice_ptr.size(0) == slice_count(rows) + 1,
                  "slice_ptr: expected [", slice_count(rows) + 1, "] in stream ", s);
  STD_TORCH_CHECK(columns.dim() == 2 && columns.size(1) == kSliceRows && values.dim() == 2 &&
                      values.size(1) == kSliceRows && values.size(0) == columns.size(0),
                  "columns and values: expected [S, 16] both in stream ", s);
  const DType type = dtype_of(values, "values");
  STD_TORCH_CHECK(type == DType::kFloat16 || type == DType::kFloat32 ||
                      (type == DType::kFloat64 && wide),
                  "values: expected float16 or float32 (float64 with float64 x)");
  return type;
}

struct Operands {
  // Contiguous tensors behind the pointers of `base` and `streams`.
  std::vector<Tensor> held;
  BaseLayer base;
  std::vector<Stream> streams;

  template <typename T>
  const T* hold(const Tensor& tensor) {
    held.push_back(packed(tensor));
    return static_cast<const T*>(held.back().const_data_ptr());
  }

  // `x` says where all lie: x [m, K], or a gradient [m, N].
  Operands(const Tensor& x, const Tensor& tiles, const Tensor& scales, int64_t rows, int64_t group_size,
           const std::vector<Tensor>& slice_ptr, const std::vector<Tensor>& columns,
           const std::vector<Tensor>& values, const Tensor& alpha) {
    const Site site(x);
    const int64_t m = x.size(0);
    site.check(tiles, ScalarType::Byte, "tiles");
    STD_TORCH_CHECK(group_size == 32 || group_size == 64 || group_size == 128,
                    "group_size: expected 32, 64 or 128, found ", group_size);
    STD_TORCH_CHECK(rows > 0 && tiles.dim() == 3 && tiles.size(0) == tile_count(rows) &&
                        tiles.size(2) == kTileWords * 4,
                    "tiles: expected [", tile_count(rows), ", K/8, 128] for ", rows, " rows");
    const int64_t k = tiles.size(1) * kTileInputs;
    STD_TORCH_CHECK(k > 0 && k % group_size == 0 && k <= kMaxColumns, "tiles: K = ", k,
                    " must be a multiple of group_size ", group_size, " and at most ", kMaxColumns);
    STD_TORCH_CHECK(scales.dim() == 3 && scales.size(0) == tiles.size(0) &&
                        scales.size(1) == k / group_size && scales.size(2) == kTileRows,
                    "scales: expected [", tiles.size(0), ", ", k / group_size, ", 32]");
    STD_TORCH_CHECK(scales.scalar_type() == ScalarType::Half || scales.scalar_type() == ScalarType::BFloat16,
                    "scales: expected float16 or bfloat16, found ",
                    torch::headeronly::toString(scales.scalar_type()));
    site.check(scales, "scales");
    base = {hold<uint32_t>(tiles), hold<void>(scales), dtype_of(scales, "scales"), rows, k, group_size};

    const int64_t count = static_cast<int64_t>(values.size());
    STD_TORCH_CHECK(slice_ptr.size() == values.size() && columns.size() == values.size(),
                    "streams: slice_ptr, columns and values differ in number: ", slice_ptr.size(), ", ",
                    columns.size(), ", ", values.size());
    site.check(alpha, ScalarType::Float, "alpha");
    STD_TORCH_CHECK(alpha.dim() == 2 && alpha.size(0) == count && alpha.size(1) == m, "alpha: expected [",
                    count, ", ", m, "]");
    const float* alphas = hold<float>(alpha);
    const bool wide = x.scalar_type() == ScalarType::Double;
    for (int64_t s = 0; s < count; ++s) {
      const DType type = check_stream(site, slice_ptr[s], columns[s], values[s], rows, wide, s);
      streams.push_back({hold<int32_t>(slice_ptr[s]), hold<uint16_t>(columns[s]), hold<void>(values[s]), type,
                         alphas + s * m});
    }
  }

  int64_t count() const { return static_cast<int64_t>(streams.size()); }
};

// The overload with `out` is not on autocast's lists, which would round the operands.
inline void matmul_into(Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace orth
