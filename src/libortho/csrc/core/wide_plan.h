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
constexpr int kGroupWarps = 4;  // on Hopper four warps multiply together
constexpr int kPlaneBytes = (kBlockInputs + 1) * 16;  // an octet's plane of a block, and zeros
constexpr int kSumsPad = 4;                           // floats, between the rows of a thread block's sums

struct WidePlan {
  int octets;  // of the batch: 4 or 8
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

// x is never as it lies. row_groups == 0: it does not fit, or leaves a thread block idle.
inline WidePlan wide_plan(const Problem& p, const Device& d, const PlanChoice& choice) {
  WidePlan plan{};
  const int64_t blocks = block_count(p.columns);
  plan.octets = p.batch <= 32 ? 4 : 8;
  plan.row_warps = choice.row_warps;
  plan.k_warps = choice.k_warps;
  plan.cluster = choice.cluster;
  plan.chunks = static_cast<int>(ceil_div(ceil_div(blocks, choice.cluster), choice.k_warps));
  plan.stages = choice.stages;
  plan.stage_bytes = stage_bytes(p.group_size);
  plan.shared_bytes = wide_shared_bytes(plan, p.batch);
  if (plan.shared_bytes <= d.shared_bytes && choice.cluster <= blocks) {
    plan.row_groups = static_cast<int>(ceil_div(tile_count(p.rows), choice.row_warps));
  }
  return plan;
}

namespace plan_detail {

// Thread blocks that run at once where `fit` of them share a multiprocessor. Those of a cluster lie in
// one of the device's eight processing clusters, of which two are taken to be small.
inline int64_t wide_at_once(const Device& d, int cluster, int64_t fit) {
  if (cluster == 1) return d.processors * fit;
  constexpr int64_t kParts = 8, kSmall = 2, kSmallProcessors = 12;
  const int64_t large = (d.processors - kSmall * kSmallProcessors) / (kParts - kSmall);
  const int64_t clusters = (kParts - kSmall) * (large * fit / cluster) + kSmall * (kSmallProcessors * fit / cluster);
  // Where multiprocessors are shared, clusters that are placed one after another leave gaps.
  return (fit > 1 ? clusters * 9 / 10 : clusters) * cluster;
}

// An estimate of the cycles that the launch takes, to rank plans by: fitted by hand to a sweep on one H100
// (benchmarks/results/cuda/h100-plans.json), whose fastest plan of a shape is at most 2% faster than the one
// chosen. Memory is taken to give 17 bytes a cycle and multiprocessor.
inline double wide_cost(const Problem& p, const Device& d, const WidePlan& plan) {
  const double m = 8.0 * plan.octets;
  const int warps = plan.row_warps * plan.k_warps;
  const int64_t most = (plan.octets == 8 ? 1 : 2) * kWarps / warps, room = d.processor_shared_bytes / (plan.shared_bytes + 1024);
  const int64_t fit = room < most ? room : most, grid = int64_t{plan.row_groups} * plan.cluster;
  // Thread blocks that share a multiprocessor: no more than are needed for all to run at once.
  int64_t share = 1;
  while (share < fit && wide_at_once(d, plan.cluster, share) < grid) ++share;
  int64_t at_once = wide_at_once(d, plan.cluster, share);
  at_once = at_once > 0 ? at_once : plan.cluster;
  const double waves = static_cast<double>(ceil_div(grid, at_once));
  // Between the average multiprocessor's and the fullest one's: where many are there, one more fits in.
  const double average = static_cast<double>(grid) / d.processors;
  const double most_together = static_cast<double>(average > 1 && share < fit ? share + 1 : share);
  const double together = average < most_together ? (average + most_together) / 2 : most_together;
  const double groups = together * warps / kGroupWarps;
  const double late = plan.stages == 2 && groups <= 2 ? 60 : 0;  // waits that no other warps fill
  const double busy = plan.chunks * (650 + late + groups * (380 + 5 * m) + together * plan.k_warps * 7 * m);
  // What has to be under way for memory to be busy all the time, in each multiprocessor.
  constexpr double kFlying = 25000;
  const double block = static_cast<double>(plan.stage_bytes), running = static_cast<double>(grid < at_once ? grid : at_once);
  const int ahead = plan.stages - 1 < plan.chunks ? plan.stages - 1 : plan.chunks;
  double memory = static_cast<double>(tile_count(p.rows) * block_count(p.columns)) * block / (17.0 * d.processors * waves);
  const double flying = running * ahead * warps * block / d.processors;
  if (ahead < plan.chunks && flying < kFlying) memory *= kFlying / flying;
  const bool shares = plan.cluster * plan.k_warps > 1;
  const double sums = together * warps * kTileRows * m * 4;
  const double room_taken = 350.0 * (plan.stages - 2);  // from the next launch, which begins in what is left
  return waves * ((busy > memory ? busy : memory) + 6000 + room_taken +
                  (shares ? plan.k_warps * (1500 + sums / 24) : sums / 48));
}

}  // namespace plan_detail

// The cheapest of all plans, searched for. Requires columns a multiple of group_size and batch in
// 17 .. kFusedRows. row_groups == 0: too little shared memory.
inline WidePlan plan_wide(const Problem& p, const Device& d) {
  WidePlan best{};
  double least = 0;
  for (const int warps : {kWarps, kWarps / 2}) {
    for (int k_warps = 1; k_warps <= (d.clusters ? warps / kGroupWarps : warps); k_warps *= 2) {
      for (int cluster = 1; cluster <= (d.clusters ? kMostCluster : 1); ++cluster) {
        for (int stages = 2; stages <= kMostStages; ++stages) {
          const WidePlan plan = wide_plan(p, d, {false, warps / k_warps, k_warps, cluster, stages});
          if (plan.row_groups == 0) continue;
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
