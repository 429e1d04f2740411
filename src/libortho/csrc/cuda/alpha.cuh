// alpha [streams, M] of a launch: from global memory into shared, and what it opens; wide_alpha.cuh has
// that of more rows than a warp has lanes.
#pragma once

#include "gemm_args.cuh"

namespace orth {

// alpha of the kernel for up to 16 rows on its way, in each warp: lane m holds that of row m.
struct WarpAlpha {
  static_assert(kNarrowRows <= 32, "a lane for each row");
  float value[kMostStreams];

  __device__ WarpAlpha(const GemmArgs& args, int lane) {
#pragma unroll
    for (int s = 0; s < kMostStreams; ++s) {
      value[s] = 0.0f;
      if (s < args.stream_count && lane < args.batch) value[s] = load_in_order(args.streams[s].alpha + lane);
    }
  }

  // The streams that any row opens, as bits.
  __device__ uint32_t open(const GemmArgs& args) const {
    uint32_t open = 0;
#pragma unroll
    for (int s = 0; s < kMostStreams; ++s) {
      if (s < args.stream_count && __any_sync(0xffffffffu, value[s] != 0.0f)) open |= 1u << s;
    }
    return open;
  }

  __device__ void put(const GemmArgs& args, int lane, float* alpha) const {
#pragma unroll
    for (int s = 0; s < kMostStreams; ++s) {
      if (s < args.stream_count && lane < args.batch) alpha[s * args.batch + lane] = value[s];
    }
  }
};

// Whether row m opens any stream.
__device__ inline bool opens_row(const GemmArgs& args, const float* alpha, int m) {
  bool any = false;
  for (int s = 0; s < args.stream_count; ++s) any = any || alpha[s * args.batch + m] != 0.0f;
  return any;
}

}  // namespace orth
