// The kernels for AVX-512 with BF16. Compiled with the flags of AVX-512 and -mavx512bf16.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX512BF16__)
#include "kernel_table.h"
#include "pair_kernels.h"
#include "vector_avx512.h"

namespace orth {
namespace {

// A type of its own, so that this file's copies of the kernels keep their own symbols.
struct VectorAvx512Bf16 : VectorAvx512 {};

}  // namespace

const Kernels<float>* avx512bf16_kernels() {
  static const Kernels<float> kernels = [] {
    Kernels<float> table = *kernel_table<VectorAvx512Bf16>();
    table.pack_pairs = PairKernels::pack;
    table.pairs_forward = PairKernels::forward;
    return table;
  }();
  return &kernels;
}

}  // namespace orth
#else
namespace orth {
const Kernels<float>* avx512bf16_kernels() { return nullptr; }
}  // namespace orth
#endif
