// The kernels on any CPU; the only ones for double.
#include "kernels_impl.h"
#include "vector_scalar.h"

namespace orth {

const Kernels<float>* scalar_kernels() { return KernelsOf<VectorScalar<float>>::table(); }
const Kernels<double>* scalar_kernels_double() { return KernelsOf<VectorScalar<double>>::table(); }

}  // namespace orth
