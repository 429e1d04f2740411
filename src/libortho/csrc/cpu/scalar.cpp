// The kernels on any CPU; the only ones for double.
#include "kernel_table.h"
#include "vector_scalar.h"

namespace orth {

const Kernels<float>* scalar_kernels() { return kernel_table<VectorScalar<float>>(); }
const Kernels<double>* scalar_kernels_double() { return kernel_table<VectorScalar<double>>(); }

}  // namespace orth
