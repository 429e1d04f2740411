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
  int* counters;  // [tiles], 0 before and after
  float* parts;   // [panels, tiles, M, 32]
  int rows, columns, group_size, batch, tile_count;
  int panels, blocks_per_panel, rounds;
  int x_stride, x_bytes, stage_bytes;  // bytes
  bool bfloat_scales;
  bool streams_only;  // y += the streams, without the base
  // Of the wide kernel, where a panel is what one thread block of a cluster takes.
  int row_warps, k_warps, stages;
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

// Grid: (thread blocks of a panel, panels).
struct Place : Lane {
  int panel;
  int block_begin, block_end;  // of 128 inputs
  int input_begin;

  __device__ explicit Place(const GemmArgs& args) {
    panel = blockIdx.y;
    const int blocks = (args.columns + kBlockInputs - 1) / kBlockInputs;
    block_begin = part_begin(blocks, panel, args.panels);
    block_end = part_begin(blocks, panel + 1, args.panels);
    input_begin = block_begin * kBlockInputs;
  }
};

}  // namespace orth
