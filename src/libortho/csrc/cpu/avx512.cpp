// The kernels for AVX-512. Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl and AVX2's flags.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "kernels_impl.h"
#include "vector_avx512.h"

namespace orth {
const Kernels<float>* avx512_kernels() { return KernelsOf<VectorAvx512>::table(); }
}  // namespace orth
#else
namespace orth {
const Kernels<float>* avx512_kernels() { return nullptr; }
}  // namespace orth
#endif
