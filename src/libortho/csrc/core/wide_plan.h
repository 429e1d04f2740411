// How the forward of 17 to 64 rows of x is spread over a GPU: pure arithmetic on the shapes.
//
// A thread block takes a row group, `row_warps` tiles, and its share of the inputs. Each of its warps
// takes one tile and, where there are several `k_warps`, a part of the share; it walks its blocks of
// 128 inputs one chunk after another, x for the chunk being brought to shared memory for all. The
// thread blocks that split a row group's inputs form a cluster and sum through one another's shared
// memory, in order.
#pragma once

#include <initializer_list>

#include "launch_plan.h"

namespace orth {

constexpr int kWarps = 8;  // of a thread block
constexpr int kPlaneBytes = (kBlockInputs + 8) * 16;  // an octet's plane of a block, and zeros
constexpr int kSumsPad = 8;                           // floats, between the rows of a thread block's sums

struct WidePlan {
  int octets;  // of the batch: 1, 2, 4 or 8
  int row_warps, k_warps;
  int cluster;
  int row_groups;
  int chunks;  // of the busiest warp
  int stages;  // blocks in shared memory for each warp, the one being multiplied among them
  int64_t stage_bytes;
  int64_t shared_bytes;
};

ORTH_HD constexpr int raw_bytes(int octets) { return octets * 8 * kBlockInputs * 2; }

// Of one warp's stage of the ring, all warps' stages, x as it lies, x transposed, alpha, cursors.
inline int64_t wide_shared_bytes(const WidePlan& plan, int64_t batch) {
  const int warps = plan.row_warps * plan.k_warps;
  const int64_t ring = plan.stages * warps * plan.stage_bytes;
  const int64_t x = int64_t{plan.stages} * plan.k_warps * raw_bytes(plan.octets) +
                    2 * plan.k_warps * plan.octets * kPlaneBytes;
  return ring + x + kMostStreams * (batch + warps * (kTileRows + 2)) * 4;
}

namespace plan_detail {

// Cycles of the busiest multiprocessor. The figures are those of Hopper: 17 bytes of memory and 40 of
// L2 a cycle, a product every 1.6 cycles, four instructions a cycle.
inline double wide_cost(const Problem& p, const Device& d, const WidePlan& plan) {
  const double m = 8.0 * plan.octets;
  const int warps = plan.row_warps * plan.k_warps;
  const int64_t most = (plan.octets == 8 ? 1 : 2) * kWarps / warps;
  int64_t fit = d.processor_shared_bytes / (plan.shared_bytes + 1024);
  fit = fit < most ? fit : most;
  const int64_t grid = int64_t{plan.row_groups} * plan.cluster;
  const int64_t processors = d.processors < plan.cluster ? d.processors : d.processors - d.processors % plan.cluster;
  const double per_processor = static_cast<double>(ceil_div(grid, processors));
  const double together = per_processor < static_cast<double>(fit) ? per_processor : static_cast<double>(fit);
  const double block = static_cast<double>(plan.stage_bytes);
  const double issue = (190 + 4 * m) / 4, tensor = 3.2 * m, ingest = (block + kBlockInputs * 2 * m / plan.row_warps) / 40;
  const double step = issue > tensor ? (issue > ingest ? issue : ingest) : (tensor > ingest ? tensor : ingest);
  const double busy = per_processor * warps * plan.chunks * step;
  const double waves = static_cast<double>(ceil_div(static_cast<int64_t>(per_processor), fit));
  const double latency = waves * plan.chunks * (500 + 8 * m);
  // What has to be under way for memory to be busy all the time.
  constexpr double kFlying = 56000;
  const int ahead = plan.stages - 1 < plan.chunks ? plan.stages - 1 : plan.chunks;
  const double flying = together * ahead * warps * block;
  double memory = static_cast<double>(tile_count(p.rows) * block_count(p.columns)) * block / (17.0 * d.processors);
  if (ahead < plan.chunks && flying < kFlying) memory *= kFlying / flying;
  double cost = busy > latency ? busy : latency;
  cost = (cost > memory ? cost : memory) + 0.1 * (busy + latency);
  // A thread block's beginning and end: its first blocks, its sums through shared memory.
  const double sums = static_cast<double>(plan.row_warps) * kTileRows * m * 4 * plan.k_warps;
  return cost + waves * 1500 + per_processor * sums / 32 +
         (plan.cluster > 1 ? waves * 1500 + per_processor * sums / 16 : 0);
}

}  // namespace plan_detail

// Requires columns a multiple of group_size and batch in 1 .. kFusedRows. row_groups == 0:
// too little shared memory.
inline WidePlan plan_wide(const Problem& p, const Device& d) {
  WidePlan best{};
  double least = 0;
  const int64_t tiles = tile_count(p.rows), blocks = block_count(p.columns);
  for (const int warps : {kWarps, kWarps / 2}) {
    for (int k_warps = 1; k_warps <= warps; k_warps *= 2) {
      for (int cluster = 1; cluster <= (d.clusters ? kMostCluster : 1); cluster *= 2) {
        for (int stages = 4; stages >= 2; --stages) {
          WidePlan plan{};
          plan.octets = p.batch <= 8 ? 1 : p.batch <= 16 ? 2 : p.batch <= 32 ? 4 : 8;
          plan.k_warps = k_warps;
          plan.row_warps = warps / k_warps;
          plan.cluster = cluster;
          plan.row_groups = static_cast<int>(ceil_div(tiles, plan.row_warps));
          plan.chunks = static_cast<int>(ceil_div(ceil_div(blocks, cluster), k_warps));
          plan.stages = stages;
          plan.stage_bytes = stage_bytes(p.group_size);
          plan.shared_bytes = wide_shared_bytes(plan, p.batch);
          if (plan.shared_bytes > d.shared_bytes || cluster > blocks) continue;
          const double now = plan_detail::wide_cost(p, d, plan);
          if (best.row_groups == 0 || now < least) {
            best = plan;
            least = now;
          }
        }
      }
    }
  }
  return best;
}

}  // namespace orth
