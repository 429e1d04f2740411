// A warp's way through its weights: a ring of blocks of the base and pieces of streams in shared memory,
// filled ahead. Lanes copy whole lines and read what others copied, so the warp meets before it reads a
// place and before it gives the place away.
#pragma once

#include "base_blocks.cuh"
#include "stream_share.cuh"

namespace orth {

template <bool kWhole>
class Ring {
 public:
  __device__ Ring(const GemmArgs& args, const Place& place, const BaseBlocks<kWhole>& blocks,
                  uint32_t rings)
      : args_(args), place_(place), blocks_(blocks) {
    begin_ = slot_ = read_ = rings + place.warp * args.stages * args.stage_bytes;
    end_ = begin_ + args.stages * args.stage_bytes;
    begin_panel();
  }

  // Before the streams are known: as much of the first panel's base as the ring holds. Then start().
  __device__ __forceinline__ void prefetch() {
    while (ahead_ < args_.stages && left_ > 0) fetch_base();
  }

  // Fills what is left of the ring.
  __device__ __forceinline__ void start(const StreamShares& shares) {
    while (ahead_ < args_.stages) fetch(shares);
  }

  // The oldest place has arrived, for the whole warp.
  __device__ __forceinline__ uint32_t wait() const {
    if (args_.stages == 4) {
      wait_copies<3>();
    } else if (args_.stages == 3) {
      wait_copies<2>();
    } else {
      wait_copies<1>();
    }
    __syncwarp();
    return read_;
  }

  // The oldest place has been read: fills it with what comes next.
  __device__ __forceinline__ void next(const StreamShares& shares) {
    __syncwarp();
    read_ = after(read_);
    --ahead_;
    fetch(shares);
  }

 private:
  __device__ __forceinline__ uint32_t after(uint32_t slot) const {
    slot += args_.stage_bytes;
    return slot == end_ ? begin_ : slot;
  }

  __device__ __forceinline__ void commit() {
    commit_copies();
    slot_ = after(slot_);
    ++ahead_;
  }

  __device__ __forceinline__ void begin_panel() {
    left_ = 0;
    stream_ = -1;
    half_ = kMostHalves;
    slots_ = {0, 0, 0};
    if (round_ >= args_.rounds || args_.streams_only || place_.tile(args_, round_) >= args_.tile_count) return;
    const Panel panel(args_, place_, pass_);
    left_ = panel.share(args_, place_);
    block_ = panel.begin + place_.k_warp;
  }

  __device__ __forceinline__ void fetch_base() {
    blocks_.copy(place_.tile(args_, round_), block_, slot_);
    block_ += args_.k_warps;
    --left_;
    commit();
  }

  // A group is committed in any case.
  __device__ __forceinline__ void fetch(const StreamShares& shares) {
    if (left_ > 0) return fetch_base();
    find(shares);
    if (left_ > 0) return fetch_base();
    const int slot = slots_.begin + place_.lane / 2;
    if (slot < slots_.end) {
      const StreamView& stream = args_.streams[stream_];
      const int64_t entry = static_cast<int64_t>(slot) * kSliceRows + place_.lane % 2 * 8;
      copy16_async(slot_ + place_.lane * 16, stream.columns + entry);
      copy16_async(slot_ + kPieceSlots * kSliceRows * 2 + place_.lane * 16, stream.values + entry);
    }
    slots_.begin += kPieceSlots;
    commit();
  }

  // Goes on to a piece of a stream, or to the base of the next panel or round; or to the end.
  __device__ __forceinline__ void find(const StreamShares& shares) {
    while (slots_.begin >= slots_.end) {
      if (round_ >= args_.rounds) return;
      if (shares.any_open() && place_.tile(args_, round_) < args_.tile_count) {
        if (half_ < shares.halves()) {
          if (!bounds_here_) {
            commit_copies();
            wait_copies<0>();
            __syncwarp();
            bounds_here_ = true;
          }
          slots_ = shares.share(stream_, round_, half_++);
          continue;
        }
        while (++stream_ < args_.stream_count && !shares.is_open(stream_)) {}
        if (stream_ < args_.stream_count) {
          half_ = 0;
          continue;
        }
      }
      if (++pass_ == args_.passes) {
        pass_ = 0;
        ++round_;
      }
      begin_panel();
      if (left_ > 0) return;
    }
  }

  const GemmArgs& args_;
  const Place place_;
  const BaseBlocks<kWhole> blocks_;
  uint32_t begin_, end_, slot_, read_;
  int ahead_ = 0;
  int round_ = 0, pass_ = 0;
  int left_, block_ = 0;
  int stream_, half_;
  Share slots_;
  bool bounds_here_ = false;
};

}  // namespace orth
