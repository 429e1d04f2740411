// alpha [streams, M] of a launch: from global memory into shared, and what it opens.
#pragma once

#include "gemm_args.cuh"

namespace orth {

// alpha on its way: read before x, put down after it, so that the two waits are one.
struct AlphaRead {
  float value[kMostStreams * kFusedRows / (32 * kWarps / 2)];
};

__device__ inline AlphaRead read_alpha(const GemmArgs& args) {
  AlphaRead read{};
  int i = 0;
#pragma unroll
  for (float& value : read.value) {
    const int at = threadIdx.x + i++ * static_cast<int>(blockDim.x);
    if (at < args.stream_count * args.batch) {
      value = load_in_order(args.streams[at / args.batch].alpha + at % args.batch);
    }
  }
  return read;
}

__device__ inline void put_alpha(const GemmArgs& args, const AlphaRead& read, float* alpha) {
  int i = 0;
#pragma unroll
  for (const float& value : read.value) {
    const int at = threadIdx.x + i++ * static_cast<int>(blockDim.x);
    if (at < args.stream_count * args.batch) alpha[at] = value;
  }
}

// alpha of up to 32 rows on its way, in each warp: lane m holds that of row m.
struct WarpAlpha {
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

// Whether row m opens any stream.
__device__ inline bool opens_row(const GemmArgs& args, const float* alpha, int m) {
  bool any = false;
  for (int s = 0; s < args.stream_count; ++s) any = any || alpha[s * args.batch + m] != 0.0f;
  return any;
}

}  // namespace orth
