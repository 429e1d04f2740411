// A warp's way through the base: its ring of blocks in shared memory. Lanes copy whole lines and read
// what others copied, so the warp meets before it reads a block and before it gives the block's place
// away.
#pragma once

#include "base_blocks.cuh"

namespace orth {

template <int kStages, bool kWhole>
class BaseRing {
 public:
  // Where in the ring the block being multiplied lies. `block` may be past the panel's end where the
  // warps do not divide its blocks.
  struct Cursor {
    int block;
    uint32_t slot;
  };

  __device__ BaseRing(const GemmArgs& args, const Place& place, const BaseBlocks<kWhole>& blocks, uint32_t rings)
      : args_(args), blocks_(blocks), block_end_(place.block_end) {
    begin_ = rings + place.warp * kStages * args.stage_bytes;
    end_ = begin_ + kStages * args.stage_bytes;
    block_step_ = place.warps;
    per_tile_ = (place.block_end - place.block_begin + place.warps - 1) / place.warps;
    first_block_ = place.block_begin + place.warp;
    // Neighbouring thread blocks take neighbouring tiles.
    tile_step_ = args.blocks_per_panel;
    first_tile_ = blockIdx.x;
    unit_skip_ = tile_step_ * blocks.count() - per_tile_ * block_step_;

    tile_ = first_tile_;
    block_ = first_block_;
    unit_ = tile_ * blocks.count() + block_;
    left_ = per_tile_;
    slot_ = begin_;
  }

  __device__ int first_tile() const { return first_tile_; }
  __device__ int tile_step() const { return tile_step_; }
  __device__ int per_tile() const { return per_tile_; }
  __device__ Cursor begin() const { return {first_block_, begin_}; }
  __device__ void begin_tile(Cursor& now) const { now.block = first_block_; }

  __device__ void advance(Cursor& now) const {
    now.block += block_step_;
    now.slot = next(now.slot);
  }

  // The oldest block has arrived, for the whole warp.
  __device__ void wait() const {
    wait_copies<kStages - 1>();
    __syncwarp();
  }

  // Starts the copy of the next block: all blocks of a tile, then the tile after it. A group is
  // committed in any case.
  __device__ void fetch() {
    __syncwarp();
    if (tile_ < args_.tile_count && block_ < block_end_ && !args_.streams_only) blocks_.copy(tile_, block_, unit_, slot_);
    commit_copies();
    slot_ = next(slot_);
    unit_ += block_step_;
    block_ += block_step_;
    if (--left_ == 0) {
      left_ = per_tile_;
      tile_ += tile_step_;
      unit_ += unit_skip_;
      block_ = first_block_;
    }
  }

 private:
  __device__ uint32_t next(uint32_t slot) const {
    slot += args_.stage_bytes;
    return slot == end_ ? begin_ : slot;
  }

  const GemmArgs& args_;
  const BaseBlocks<kWhole> blocks_;
  const int block_end_;
  uint32_t begin_, end_, slot_;
  int block_step_, per_tile_, first_block_, tile_step_, first_tile_, unit_skip_;
  int tile_, block_, unit_, left_;
};

}  // namespace orth
