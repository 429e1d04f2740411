// The kernels for AVX2 + FMA + F16C. Compiled with -mavx2 -mfma -mf16c.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "kernel_table.h"
#include "vector_avx2.h"

namespace orth {
const Kernels<float>* avx2_kernels() { return kernel_table<VectorAvx2>(); }
}  // namespace orth
#else
namespace orth {
const Kernels<float>* avx2_kernels() { return nullptr; }
}  // namespace orth
#endif
