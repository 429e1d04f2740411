// alpha [streams, M] of the kernel for many rows of x: from global memory into shared, and what it opens.
#pragma once

#include "alpha.cuh"

namespace orth {

// alpha on its way: read before x, put down after it, so that the two waits are one.
struct WideAlpha {
  // Of the smallest thread block, which plan_wide() makes half of kWarps.
  static constexpr int kFewestThreads = 32 * kWarps / 2, kEach = kMostStreams * kFusedRows / kFewestThreads;
  static_assert(kEach * kFewestThreads == kMostStreams * kFusedRows, "every alpha has its thread");

  float value[kEach] = {};

  __device__ explicit WideAlpha(const GemmArgs& args) {
    int i = 0;
#pragma unroll
    for (float& one : value) {
      const int at = threadIdx.x + i++ * static_cast<int>(blockDim.x);
      if (at < args.stream_count * args.batch) {
        one = load_in_order(args.streams[at / args.batch].alpha + at % args.batch);
      }
    }
  }

  __device__ void put(const GemmArgs& args, float* alpha) const {
    int i = 0;
#pragma unroll
    for (const float& one : value) {
      const int at = threadIdx.x + i++ * static_cast<int>(blockDim.x);
      if (at < args.stream_count * args.batch) alpha[at] = one;
    }
  }
};

// The streams that any row opens, as bits; the same in every warp.
__device__ inline uint32_t open_streams(const GemmArgs& args, const float* alpha, int lane) {
  uint32_t open = 0;
  for (int s = 0; s < args.stream_count; ++s) {
    bool any = false;
    for (int m = lane; m < args.batch; m += 32) any = any || alpha[s * args.batch + m] != 0.0f;
    if (__any_sync(0xffffffffu, any)) open |= 1u << s;
  }
  return open;
}

}  // namespace orth
