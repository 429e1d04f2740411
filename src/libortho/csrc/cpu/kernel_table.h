// Gathers the kernels of one vector type into the table of one instruction set.
#pragma once

#include "base_kernels.h"
#include "conversions.h"
#include "kernels.h"
#include "stream_kernels.h"

namespace orth {

template <typename V>
const Kernels<typename V::T>* kernel_table() {
  using C = Conversions<V>;
  using B = BaseKernels<V>;
  using S = StreamKernels<V>;
  static const Kernels<typename V::T> kernels = {
      C::load,           C::store,           B::base_forward,
      B::dequantize,     S::pack,            S::gather_forward,
      S::stream_forward, S::stream_grad_x,   S::stream_grad_values,
      nullptr,           nullptr};
  return &kernels;
}

}  // namespace orth
