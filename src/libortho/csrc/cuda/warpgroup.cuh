// The product of four warps at once, on Hopper: each warp's 16 x 16 operand in registers times one
// operand in shared memory, which the tensor cores read there themselves.
//
// Products run on after they are issued: their sums are there, and the registers and the shared memory
// that they read are free, after wait_products().
#pragma once

#include "formats.cuh"
#include "sums.cuh"

namespace orth {

#ifndef ORTH_EMULATED
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kWarpgroups = true;
#else
constexpr bool kWarpgroups = false;
#endif

// Shared memory written before by this thread is seen by the products of those that it meets after.
__device__ __forceinline__ void show_to_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Before products whose registers have been written since the last ones.
__device__ __forceinline__ void begin_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void commit_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until at most N of the last groups are under way.
template <int N, int kOctets>
__device__ __forceinline__ void wait_products(Sums<kOctets>& sum) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
  if constexpr (N == 0) {  // no use of a sum moves before the wait
#pragma unroll
    for (int i = 0; i < 8 * kOctets; ++i) asm volatile("" : "+f"(sum[i / 8][i / 4 % 2][i % 4])::"memory");
  }
#endif
}

#define ORTH_SUM(o) "+f"(c[o][kBlock][0]), "+f"(c[o][kBlock][1]), "+f"(c[o][kBlock][2]), "+f"(c[o][kBlock][3])
#define ORTH_SUMS_4 ORTH_SUM(0), ORTH_SUM(1), ORTH_SUM(2), ORTH_SUM(3)
#define ORTH_SUMS_8 ORTH_SUMS_4, ORTH_SUM(4), ORTH_SUM(5), ORTH_SUM(6), ORTH_SUM(7)
#define ORTH_REGISTERS_4 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define ORTH_REGISTERS_8 \
  ORTH_REGISTERS_4 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ORTH_PRODUCT(rows, type, d, a0, a1, a2, a3, b, add, sums)                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" add ", 0;\n"                              \
               "wgmma.mma_async.sync.aligned.m64n" rows "k16.f32." type "." type " {" d "}, " \
               "{%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b ", p, 1, 1, 1;\n}"                 \
               : sums                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(x), "n"(kFirst ? 0 : 1))
#define ORTH_PRODUCTS(type)                                                                      \
  if constexpr (kOctets == 4) {                                                                  \
    ORTH_PRODUCT("32", type, ORTH_REGISTERS_4, "16", "17", "18", "19", "20", "21", ORTH_SUMS_4); \
  } else {                                                                                       \
    static_assert(kOctets == 8);                                                                 \
    ORTH_PRODUCT("64", type, ORTH_REGISTERS_8, "32", "33", "34", "35", "36", "37", ORTH_SUMS_8); \
  }

// Product block kBlock of c, all octets: c = a x where kFirst, else c += a x. x describes (see
// wide_operand) the operand.
template <typename Type, int kOctets, int kBlock, bool kFirst>
__device__ __forceinline__ void warpgroup_product(Sums<kOctets>& c, const uint32_t (&a)[4], uint64_t x) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (Type::kIsBFloat) {
    ORTH_PRODUCTS("bf16")
  } else {
    ORTH_PRODUCTS("f16")
  }
#endif
}

#undef ORTH_SUM
#undef ORTH_SUMS_4
#undef ORTH_SUMS_8
#undef ORTH_PRODUCT
#undef ORTH_REGISTERS_4
#undef ORTH_REGISTERS_8
#undef ORTH_PRODUCTS
#endif

// Describes 16 consecutive units of 16 bytes at `address`, an input's 8 rows of x each, and as many for
// every further octet `octet_bytes` on: without swizzle, eight units follow eight. In a cluster the
// address's upper bits name the thread block.
__device__ __forceinline__ uint64_t wide_operand(uint32_t address, uint32_t octet_bytes) {
  constexpr uint32_t kEightUnits = 8 * 16, kSharedBytes = 1 << 18;
  return static_cast<uint64_t>(octet_bytes / 16) << 32 | (kEightUnits / 16) << 16 | address % kSharedBytes / 16;
}

}  // namespace orth
