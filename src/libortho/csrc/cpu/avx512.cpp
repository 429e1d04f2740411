// The kernels for AVX-512. Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl and AVX2's flags.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "kernel_table.h"
#include "vector_avx512.h"

namespace orth {
const Kernels<float>* avx512_kernels() { return kernel_table<VectorAvx512>(); }
}  // namespace orth
#else
namespace orth {
const Kernels<float>* avx512_kernels() { return nullptr; }
}  // namespace orth
#endif
