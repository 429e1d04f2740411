// What a launch of the fused forward is given, and where in it a warp stands.
#pragma once

#include "../core/launch_plan.h"
#include "../core/wide_plan.h"
#include "formats.cuh"

namespace orth {

struct StreamView {
  const int32_t* slice_ptr;
  const uint16_t* columns;
  const uint16_t* values;  // fp16
  const float* alpha;      // [M]
};

struct GemmArgs {
  const uint32_t* tiles;
  const uint16_t* scales;
  const uint16_t* x;
  uint16_t* y;
  int rows, columns, group_size, batch, tile_count;
  int panels;  // thread blocks of a cluster
  int row_warps, k_warps, stages;
  int stage_bytes;
  bool bfloat_scales;
  bool streams_only;  // y += the streams, without the base
  // Of the kernel for up to 16 rows.
  int passes, groups, rounds;
  int cluster_log2, passes_log2, k_log2;  // of panels, passes and k_warps
  uint32_t row_reciprocal;                // see row_quotient()
  int x_stride, x_bytes;
  int stream_count;
  StreamView streams[kMostStreams];
};

struct Lane {
  int warp, warps, lane;
  int row4, quarter;  // lane / 4 and lane % 4: a product operand's two coordinates

  __device__ Lane() {
    warp = threadIdx.x / 32;
    warps = blockDim.x / 32;
    lane = threadIdx.x % 32;
    row4 = lane / 4;
    quarter = lane % 4;
  }
};

// i / row_warps for i < 4096.
__device__ inline int row_quotient(const GemmArgs& args, int i) {
  return static_cast<int>(static_cast<uint32_t>(i) * args.row_reciprocal >> 16);
}

// Grid: (thread blocks of a cluster, clusters).
struct Place : Lane {
  int rank;
  int row_warp, k_warp;
  int blocks;  // of 128 inputs

  __device__ explicit Place(const GemmArgs& args) {
    rank = blockIdx.x;
    k_warp = row_quotient(args, warp);
    row_warp = warp - k_warp * args.row_warps;
    blocks = (args.columns + kBlockInputs - 1) / kBlockInputs;
  }

  // The tile that this warp takes in a round; it may be past the last.
  __device__ int tile(const GemmArgs& args, int round) const {
    return (static_cast<int>(blockIdx.y) + round * args.groups) * args.row_warps + row_warp;
  }
};

// Blocks [begin, end): the panel of x that a thread block holds in one of its passes.
struct Panel {
  int begin, end;

  __device__ Panel(const GemmArgs& args, const Place& place, int pass) {
    const int panel = place.rank * args.passes + pass;
    const int log2 = args.cluster_log2 + args.passes_log2;
    begin = place.blocks * panel >> log2;
    end = place.blocks * (panel + 1) >> log2;
  }

  // Blocks of a tile for one warp: k_warp, k_warp + k_warps, ...
  __device__ int share(const GemmArgs& args, const Place& place) const {
    return (end - begin - place.k_warp + args.k_warps - 1) >> args.k_log2;
  }
};

}  // namespace orth
