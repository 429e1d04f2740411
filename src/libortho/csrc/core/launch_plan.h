// How the forward of up to 8 rows of x is spread over a GPU: pure arithmetic on the shapes.
//
// The inputs are cut into `panels` of whole 128-input blocks; a thread block holds one panel of x in
// shared memory and works through tiles (32 output rows); its warps share a tile and split the panel's
// blocks between them. Where there are several panels, the thread block that finishes a tile last
// sums the panels' parts, in their order.
#pragma once

#include <cstdint>

#include "fragments.h"

namespace orth {

constexpr int kFusedRows = 64;       // rows of x in one launch
constexpr int kGatherRows = 4;       // up to here x stays as it lies and streams run on the plain cores
constexpr int kNarrowRows = 8;       // up to here a thread block's warps may share a tile; above: wide_plan.h
constexpr int kWarps = 8;            // of a thread block
constexpr int kMostStreams = 8;  // of one launch
constexpr int kMostRounds = 8;   // tiles for one place; more tiles take more thread blocks
constexpr int64_t kScaleBytes = 256;  // a warp's copy of one group's scales: four for each lane

// Blocks of weights in flight for each warp: as many as leave room for two thread blocks where
// transposed x is large.
ORTH_HD constexpr int stage_count(bool gather) { return gather ? 4 : 2; }

struct Device {
  int processors;
  int64_t shared_bytes;            // a thread block's most
  int64_t processor_shared_bytes;  // a multiprocessor's
  bool clusters;                   // thread blocks can read one another's shared memory
};

struct Problem {
  int64_t rows;  // N
  int64_t columns;
  int64_t group_size;
  int64_t batch;
};

struct LaunchPlan {
  bool gather;           // x as it lies (batch <= 4), not transposed
  int panels;
  int blocks_per_panel;  // thread blocks
  int rounds;            // tiles that the busiest place takes
  int turns;             // tiles that a processor's slot takes, one thread block after another
  int64_t x_stride;      // gather: bytes from one row of x to the next in shared memory
  int64_t x_bytes;
  int64_t stage_bytes;
  int64_t shared_bytes;
};

ORTH_HD inline int64_t block_count(int64_t columns) {
  return (columns + kBlockInputs - 1) / kBlockInputs;
}

// First of `count` things that part `part` of `parts` takes; parts differ by one at most.
ORTH_HD constexpr int part_begin(int count, int part, int parts) { return count * part / parts; }

// Units of one plane of transposed x: the panel, and one unit of zeros for what is outside it.
ORTH_HD inline int64_t plane_units(int64_t columns, int64_t panels) {
  return ((block_count(columns) + panels - 1) / panels) * kBlockInputs + 8;
}

ORTH_HD inline int64_t stage_bytes(int64_t group_size) {
  return kBlockSteps * kStepWords * 4 + kBlockInputs / group_size * kScaleBytes;
}

namespace plan_detail {

inline LaunchPlan with_panels(const Problem& p, const Device& d, int64_t panels, bool gather) {
  LaunchPlan plan{};
  plan.gather = gather;
  const int64_t tiles = tile_count(p.rows);
  plan.panels = static_cast<int>(panels);
  plan.x_stride = ceil_div(p.columns * 2, 128) * 128 + 64;
  plan.x_bytes = gather ? p.batch * plan.x_stride : plane_units(p.columns, panels) * 16;
  plan.stage_bytes = stage_bytes(p.group_size);
  plan.shared_bytes = plan.x_bytes + kWarps * stage_count(gather) * plan.stage_bytes +
                      kWarps * (gather ? kGatherRows : kNarrowRows) * 32 * 4;
  // 1 KB of a multiprocessor's memory goes to the system for each thread block.
  const int64_t fit = (plan.shared_bytes + 2048) * 2 <= d.processor_shared_bytes ? 2 : 1;
  const int64_t slots = d.processors * fit / panels > 0 ? d.processors * fit / panels : 1;
  const int64_t turns = ceil_div(tiles, slots);
  plan.turns = static_cast<int>(turns);
  plan.blocks_per_panel = static_cast<int>(ceil_div(tiles, turns < kMostRounds ? turns : kMostRounds));
  plan.rounds = static_cast<int>(ceil_div(tiles, plan.blocks_per_panel));
  // alpha, and where the slices of a place's tiles begin: room for every stream, whether there are any
  // or not, so that a stream never changes how the base is summed.
  plan.shared_bytes += kMostStreams * (p.batch + 3 * plan.rounds) * 4;
  return plan;
}

// In the time that a multiprocessor needs for its share of 2 KB of weights, one tile x block: the
// busiest place's blocks, the parts that panels hand over, and the wait for the last of them. The
// weights of the terms are measured on an H200.
inline double cost(const Problem& p, const Device& d, const LaunchPlan& plan) {
  const double tiles = static_cast<double>(tile_count(p.rows));
  const double rounds = plan.turns;
  const double blocks = static_cast<double>(ceil_div(block_count(p.columns), plan.panels));
  const int grid = plan.blocks_per_panel * plan.panels;
  // Places at work in each processor that has any.
  const double busy = tiles / rounds * plan.panels / (grid < d.processors ? grid : d.processors);
  // Places of one processor share its bandwidth.
  const double step = busy > 1 ? busy : 1;
  const bool hands_over = plan.panels > 1;
  const double parts = tiles * plan.panels * static_cast<double>(p.batch) / d.processors / 10;
  return rounds * blocks * step + (hands_over ? parts + 35 : 0);
}

inline LaunchPlan cheapest(const Problem& p, const Device& d, bool gather) {
  const int64_t blocks = block_count(p.columns);
  LaunchPlan best{};
  double least = 0;
  for (int64_t panels = 1; panels <= blocks; ++panels) {
    const LaunchPlan plan = with_panels(p, d, panels, gather);
    if (plan.shared_bytes > d.shared_bytes) continue;
    const double now = cost(p, d, plan);
    if (best.panels == 0 || now < least) {
      best = plan;
      least = now;
    }
    if (panels >= 64 && best.panels != 0) break;
  }
  return best;  // panels == 0: x does not fit
}

}  // namespace plan_detail

// Requires columns a multiple of group_size and batch in 1 .. kNarrowRows.
inline LaunchPlan plan_launch(const Problem& p, const Device& d) {
  if (p.batch <= kGatherRows) {
    const LaunchPlan plan = plan_detail::cheapest(p, d, true);
    if (plan.panels != 0) return plan;
  }
  return plan_detail::cheapest(p, d, false);
}

// Bytes of the parts that panels hand over: float [panels, tiles, batch, 32].
inline int64_t parts_bytes(const Problem& p, const LaunchPlan& plan) {
  return plan.panels > 1 ? plan.panels * tile_count(p.rows) * p.batch * kTileRows * 4 : 0;
}

}  // namespace orth
