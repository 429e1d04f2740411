// Which slots of the streams a warp takes.
#pragma once

#include "alpha.cuh"

namespace orth {

constexpr int kPieceSlots = 16;  // what a warp takes at a time: 512 bytes of columns, then 512 of values

constexpr int kMostHalves = 2;

// Slots [begin, end) of one slice of a tile: its first 16 rows, or its last.
struct Share {
  int begin, end, half;
};

// The open streams, and the bounds of the slices of all tiles that a warp will take, brought to shared
// memory by the warp itself: [streams, rounds, 3].
class StreamShares {
 public:
  // `split`: thread blocks of the cluster share the slots, too, since each has all of x.
  __device__ StreamShares(const GemmArgs& args, const Place& place, uint32_t bounds, bool split)
      : args_(args), place_(place), bounds_(bounds + place.warp * kMostStreams * args.rounds * 3 * 4) {
    const int workers = args.k_warps * (split ? args.panels : 1);
    const int worker = place.k_warp + (split ? place.rank * args.k_warps : 0);
    // Each half of the workers takes one of the tile's two slices; one alone takes both.
    halves_ = workers == 1 ? kMostHalves : 1;
    half_ = worker % 2;
    worker_ = worker / 2;
    log2_ = workers == 1 ? 0 : args.k_log2 - 1 + (split ? args.cluster_log2 : 0);
  }

  // Which streams are open, the same in all warps; asks for their bounds.
  __device__ __forceinline__ void open(uint32_t streams) {
    open_ = streams;
    if (open_ == 0) return;
    static_assert(kMostRounds * 3 <= 32, "a lane for each bound");
    const int slices = (args_.rows + kSliceRows - 1) / kSliceRows;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1) || place_.lane >= args_.rounds * 3) continue;
      const int slice = 2 * place_.tile(args_, place_.lane / 3) + place_.lane % 3;
      copy4_async(bounds_ + (s * args_.rounds * 3 + place_.lane) * 4,
                  args_.streams[s].slice_ptr + (slice < slices ? slice : slices));
    }
  }

  __device__ __forceinline__ bool any_open() const { return open_ != 0; }
  __device__ __forceinline__ bool is_open(int s) const { return (open_ >> s & 1) != 0; }

  // Shares of a stream in a tile: 0 .. halves() - 1.
  __device__ __forceinline__ int halves() const { return halves_; }

  // Once the bounds have arrived.
  __device__ __forceinline__ Share share(int s, int round, int i) const {
    const int half = (half_ + i) % 2;
    const uint32_t at = bounds_ + ((s * args_.rounds + round) * 3 + half) * 4;
    const int first = load4_shared(at), last = load4_shared(at + 4);
    const int quads = (last - first + 3) / 4;
    const int end = first + 4 * (quads * (worker_ + 1) >> log2_);
    return {first + 4 * (quads * worker_ >> log2_), end < last ? end : last, half};
  }

 private:
  const GemmArgs& args_;
  const Place place_;
  const uint32_t bounds_;
  int halves_, half_, worker_, log2_;  // of the workers that share a slice
  uint32_t open_ = 0;
};

}  // namespace orth
