// How the forward of up to 16 rows of x is spread over a GPU: pure arithmetic on the shapes.
//
// A warp takes one tile (32 output rows) and a part of its 128-input blocks. The thread blocks of a
// cluster split the inputs; each holds its panel of x in shared memory and works through row groups,
// `row_warps` tiles at a time, the `k_warps` warps of a tile splitting the panel's blocks. Where even
// that much of x does not fit, a thread block takes several panels, one after another. What the warps
// and thread blocks of a tile sum meets in the cluster's shared memory, in order.
#pragma once

#include <cstdint>

#include "fragments.h"

namespace orth {

constexpr int kFusedRows = 64;   // rows of x in one launch
constexpr int kGatherRows = 4;   // up to here x stays as it lies and streams run on the plain cores
constexpr int kNarrowRows = 16;  // up to here x stands in shared memory; above: wide_plan.h
constexpr int kMostWarps = 16;   // of a thread block
constexpr int kMostCluster = 8;
constexpr int kMostStreams = 8;  // of one launch
constexpr int kMostRounds = 8;   // row groups of one thread block; more take more thread blocks
constexpr int kMostStages = 4;   // blocks of weights in shared memory for each warp
constexpr int64_t kScaleBytes = 256;  // a warp's copy of one group's scales: four for each lane
constexpr int kSumStride = 36;   // floats between the rows of a warp's sums [M, 32], so that no two meet in a bank
constexpr int kPlanePad = 12;    // units behind a plane of transposed x; the first of them holds zeros

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

// What a search decides; the rest of a plan follows from it, the shapes and the device.
struct PlanChoice {
  bool gather;
  int row_warps, k_warps, cluster, stages;
};

struct LaunchPlan {
  bool gather;  // x as it lies (batch <= 4), not transposed
  int octets;   // of the batch, where it is transposed
  int cluster;
  int passes;   // panels that a thread block takes; as cluster and k_warps, a power of two
  int row_warps, k_warps;
  int groups;   // clusters
  int rounds;   // row groups that the busiest cluster takes
  int stages;
  int64_t x_stride;  // gather: bytes from one row of x to the next in shared memory; twice that in floats
  int64_t x_bytes;
  int64_t stage_bytes;
  int64_t shared_bytes;
};

ORTH_HD inline int64_t block_count(int64_t columns) {
  return (columns + kBlockInputs - 1) / kBlockInputs;
}

// First of `count` things that part `part` of `parts` takes; parts differ by one at most.
ORTH_HD constexpr int part_begin(int count, int part, int parts) { return count * part / parts; }

// What row_quotient() multiplies by.
constexpr uint32_t row_reciprocal(int row_warps) { return 65536u / static_cast<uint32_t>(row_warps) + 1; }

constexpr int log2_of(int power) {
  int log = 0;
  while (1 << log < power) ++log;
  return log;
}

// Units of one plane of transposed x: the longest of `panels`, and the pad.
ORTH_HD inline int64_t plane_units(int64_t columns, int64_t panels) {
  return ((block_count(columns) + panels - 1) / panels) * kBlockInputs + kPlanePad;
}

ORTH_HD inline int64_t stage_bytes(int64_t group_size) {
  return kBlockSteps * kStepWords * 4 + kBlockInputs / group_size * kScaleBytes;
}

// Bytes of a warp's sums of a tile.
ORTH_HD constexpr int sum_bytes(bool gather, int octets) {
  return (gather ? kGatherRows : 8 * octets) * kSumStride * 4;
}

// alpha [streams, M], and for every warp the slots at which the slices of its tiles begin and end
// [streams, rounds, 3]: room for every stream, whether there are any or not, so that a stream never
// changes how the base is summed.
ORTH_HD constexpr int64_t stream_bytes(int64_t batch, int warps, int rounds) {
  return kMostStreams * (batch + 3 * warps * rounds) * 4;
}

// groups == 0: it does not fit, or leaves a thread block idle.
inline LaunchPlan narrow_plan(const Problem& p, const Device& d, const PlanChoice& choice) {
  LaunchPlan plan{};
  const auto [gather, row_warps, k_warps, cluster, stages] = choice;
  const int blocks = static_cast<int>(block_count(p.columns));
  const int warps = row_warps * k_warps;
  if (cluster > blocks) return plan;
  plan.gather = gather;
  plan.octets = gather ? 1 : static_cast<int>(ceil_div(p.batch, 8));
  plan.cluster = cluster;
  plan.row_warps = row_warps;
  plan.k_warps = k_warps;
  plan.stages = stages;
  plan.stage_bytes = stage_bytes(p.group_size);
  plan.x_stride = ceil_div(p.columns * 2, 128) * 128 + 64;
  const int64_t row_groups = ceil_div(tile_count(p.rows), row_warps);
  // Clusters that find room at once, taking a thread block to a multiprocessor.
  const int64_t places = d.processors / cluster > 0 ? d.processors / cluster : 1;
  const int64_t turns = ceil_div(row_groups, places);
  const int groups = static_cast<int>(ceil_div(row_groups, turns < kMostRounds ? turns : kMostRounds));
  plan.rounds = static_cast<int>(ceil_div(row_groups, groups));
  const int64_t sums = (plan.rounds > 1 ? 2 : 1) * warps * sum_bytes(gather, plan.octets);
  const int64_t others = warps * stages * plan.stage_bytes + sums + stream_bytes(p.batch, warps, plan.rounds);
  for (plan.passes = 1; plan.passes * cluster <= blocks; plan.passes *= 2) {
    plan.x_bytes = gather ? 3 * p.batch * plan.x_stride : plan.octets * plane_units(p.columns, cluster * plan.passes) * 16;
    plan.shared_bytes = plan.x_bytes + others;
    if (plan.shared_bytes <= d.shared_bytes) {
      plan.groups = groups;
      return plan;
    }
    if (gather) break;
  }
  return plan;
}

namespace plan_detail {

// An estimate of the cycles that the launch takes, to rank plans by; no timings that its figures could be
// checked against are on record.
inline double cost(const Problem& p, const Device& d, const LaunchPlan& plan) {
  const int warps = plan.row_warps * plan.k_warps;
  const int64_t grid = int64_t{plan.groups} * plan.cluster;
  // Whether the next launch's thread blocks find room beside these, to fetch their first weights.
  const bool overlap = warps <= kMostWarps / 2 && 2 * (plan.shared_bytes + 1024) <= d.processor_shared_bytes;
  const int64_t each = ceil_div(grid, d.processors), together = overlap && each > 1 ? 2 : 1;
  const double blocks = static_cast<double>(ceil_div(each, together) * plan.rounds *
                                            ceil_div(ceil_div(block_count(p.columns), plan.cluster), plan.k_warps));
  const double latency = 550 + (plan.gather ? 0 : 112 * plan.octets);
  const double issue = static_cast<double>(warps * together) * (15 + 42 * plan.octets);
  const double busy = blocks * (latency > issue ? latency : issue);
  const double processors = static_cast<double>(grid < d.processors ? grid : d.processors);
  const double bytes = static_cast<double>(tile_count(p.rows) * block_count(p.columns) * plan.stage_bytes);
  const double memory = bytes / (33 * processors);
  const double body = busy > memory ? busy + 0.73 * memory : memory + 0.73 * busy;
  const int loads = plan.passes > 1 ? plan.passes * plan.rounds : 1;
  const double x = loads * 2700 + static_cast<double>(p.batch * p.columns * 2) / (plan.gather ? 1 : plan.cluster) / 49;
  const double sums = static_cast<double>(plan.row_warps * kTileRows * p.batch) * 4 * plan.k_warps / 28;
  // More stages where there is room for what is fetched early, fewer elsewhere.
  const int stages = (overlap ? -60 : 60) * plan.stages;
  return body + x + plan.rounds * (3800 + sums) + 2600 * (plan.cluster - 1) + (overlap ? 0 : 445) + stages;
}

inline LaunchPlan cheapest(const Problem& p, const Device& d, bool gather) {
  LaunchPlan best{};
  double least = 0;
  for (int row_warps = 1; row_warps <= kMostWarps; ++row_warps) {
    for (int k_warps = 1; row_warps * k_warps <= kMostWarps; k_warps *= 2) {
      for (int cluster = 1; cluster <= (d.clusters ? kMostCluster : 1); cluster *= 2) {
        for (int stages = kMostStages; stages >= 2; --stages) {
          const LaunchPlan plan = narrow_plan(p, d, {gather, row_warps, k_warps, cluster, stages});
          if (plan.groups == 0) continue;
          const double now = cost(p, d, plan);
          if (best.groups == 0 || now < least) {
            best = plan;
            least = now;
          }
        }
      }
    }
  }
  return best;
}

}  // namespace plan_detail

// The cheapest of all plans, searched for. Requires columns a multiple of group_size and batch in
// 1 .. kNarrowRows. groups == 0: too little shared memory.
inline LaunchPlan plan_launch(const Problem& p, const Device& d) {
  if (p.batch <= kGatherRows) {
    const LaunchPlan plan = plan_detail::cheapest(p, d, true);
    if (plan.groups != 0) return plan;
  }
  return plan_detail::cheapest(p, d, false);
}

}  // namespace orth
