// Chooses the instruction set once, when it is first asked for.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace orth {
namespace {

bool cpu_has(Isa isa) {
  if (isa == Isa::kScalar) return true;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::kAvx2) return avx2 && avx2_kernels() != nullptr;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx512) return avx512 && avx512_kernels() != nullptr;
  return avx512 && __builtin_cpu_supports("avx512bf16") && avx512bf16_kernels() != nullptr;
#else
  return false;
#endif
}

Isa choose() {
  constexpr Isa kAll[] = {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2, Isa::kScalar};
  constexpr const char* kNames[] = {"avx512bf16", "avx512", "avx2", "scalar"};
  const char* wanted = std::getenv("LIBORTHO_ISA");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (int i = 0; i < 4; ++i) {
    if (!any && std::strcmp(wanted, kNames[i]) != 0) continue;
    if (cpu_has(kAll[i])) return kAll[i];
    if (!any) {
      throw std::runtime_error(std::string("LIBORTHO_ISA=") + wanted +
                                  ": this CPU or this build lacks it; unset it or name another");
    }
  }
  throw std::runtime_error(std::string("LIBORTHO_ISA=") + wanted +
                              " is none of scalar, avx2, avx512, avx512bf16");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

template <>
const Kernels<float>& active_kernels<float>() {
  switch (active_isa()) {
    case Isa::kAvx512Bf16: return *avx512bf16_kernels();
    case Isa::kAvx512: return *avx512_kernels();
    case Isa::kAvx2: return *avx2_kernels();
    default: return *scalar_kernels();
  }
}

template <>
const Kernels<double>& active_kernels<double>() {
  return *scalar_kernels_double();
}

}  // namespace orth
