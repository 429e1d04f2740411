// The plans of one device that have been searched for. Any thread may ask at any time: nothing is allocated
// and nobody waits.
#pragma once

#include <array>
#include <atomic>

#include "wide_plan.h"

namespace orth {

// An entry is one 64-bit word, what a plan depends on and what its search decided, so that a thread reads a
// whole entry or another whole one, whoever writes there. An entry of a full set gives way to the next one.
class PlanCache {
 public:
  static constexpr int kEntries = 2048;

  // As plan_launch(); `d` is the same in every call.
  LaunchPlan narrow(const Problem& p, const Device& d) {
    const uint64_t key = key_of(p), found = find(key);
    if (found != 0) return narrow_plan(p, d, unpacked(found));
    const LaunchPlan plan = plan_launch(p, d);
    if (plan.groups != 0) keep(key, {plan.gather, plan.row_warps, plan.k_warps, plan.cluster, plan.stages});
    return plan;
  }

  // As plan_wide().
  WidePlan wide(const Problem& p, const Device& d) {
    const uint64_t key = key_of(p), found = find(key);
    if (found != 0) return wide_plan(p, d, unpacked(found));
    const WidePlan plan = plan_wide(p, d);
    if (plan.row_groups != 0) keep(key, {false, plan.row_warps, plan.k_warps, plan.cluster, plan.stages});
    return plan;
  }

 private:
  static constexpr int kWays = 8, kSetBits = 8;
  static_assert(kWays << kSetBits == kEntries);
  struct alignas(64) Set {
    std::atomic<uint64_t> entries[kWays]{};  // 0: none yet
  };

  // From the lowest bit: a choice (never 0, as stages is not), batch, group size, columns, tiles.
  static constexpr int kChoiceBits = 14, kBatchBits = 6, kGroupBits = 2, kColumnBits = 16;
  static_assert(kMostWarps <= 1 << 4 && kMostCluster <= 1 << 3 && kMostStages < 1 << 3, "bits of a choice");
  static_assert(kFusedRows <= 1 << kBatchBits && kMaxColumns < 1 << kColumnBits, "bits of a shape");

  static uint64_t packed(const PlanChoice& c) {
    const int bits = (((static_cast<int>(c.gather) << 4 | (c.row_warps - 1)) << 3 | log2_of(c.k_warps)) << 3 |
                      (c.cluster - 1)) << 3 | c.stages;
    return static_cast<uint64_t>(bits);
  }

  static PlanChoice unpacked(uint64_t word) {
    const int bits = static_cast<int>(word & ((1 << kChoiceBits) - 1));
    return {(bits >> 13) != 0, (bits >> 9 & 15) + 1, 1 << (bits >> 6 & 7), (bits >> 3 & 7) + 1, bits & 7};
  }

  // Of fewer than 2^31 rows, whose tiles take the 26 bits that are left.
  static uint64_t key_of(const Problem& p) {
    uint64_t key = static_cast<uint64_t>(tile_count(p.rows) - 1);
    key = key << kColumnBits | static_cast<uint64_t>(p.columns);
    key = key << kGroupBits | static_cast<uint64_t>(p.group_size / 64);  // 32, 64, 128: 0, 1, 2
    key = key << kBatchBits | static_cast<uint64_t>(p.batch - 1);
    return key << kChoiceBits;
  }

  static uint64_t hash(uint64_t key) { return key * 0x9e3779b97f4a7c15u; }
  Set& set_of(uint64_t key) { return sets_[hash(key) >> (64 - kSetBits)]; }

  // The entry of a key; 0: there is none.
  uint64_t find(uint64_t key) {
    for (const std::atomic<uint64_t>& entry : set_of(key).entries) {
      const uint64_t word = entry.load(std::memory_order_relaxed);
      if (word != 0 && word >> kChoiceBits == key >> kChoiceBits) return word;
    }
    return 0;
  }

  void keep(uint64_t key, const PlanChoice& choice) {
    Set& set = set_of(key);
    std::atomic<uint64_t>* place = &set.entries[hash(key) >> (64 - kSetBits - 3) & (kWays - 1)];
    for (std::atomic<uint64_t>& entry : set.entries) {
      if (entry.load(std::memory_order_relaxed) == 0) place = &entry;
    }
    place->store(key | packed(choice), std::memory_order_relaxed);
  }

  std::array<Set, 1 << kSetBits> sets_{};
};

}  // namespace orth
