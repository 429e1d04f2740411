// A warp's way through the base: its ring of 32 rows x 128 inputs in shared memory. Lanes copy whole
// lines and read what others copied, so the warp meets before it reads a block and before it gives the
// block's place away.
#pragma once

#include "gemm_args.cuh"

namespace orth {

// kWhole: groups of 128, hence whole blocks; otherwise groups of 32, 64 or 128 and a last block that
// may be cut short.
template <int kStages, bool kSharedTiles, bool kWhole>
class BaseRing {
 public:
  // Where in the ring the block being multiplied lies. `block` may be past the panel's end where the
  // warps do not divide its blocks.
  struct Cursor {
    int block;
    uint32_t slot;
  };

  __device__ BaseRing(const GemmArgs& args, const Place& place, uint32_t rings)
      : args_(args), block_end_(place.block_end) {
    begin_ = rings + place.warp * kStages * args.stage_bytes;
    end_ = begin_ + kStages * args.stage_bytes;
    copy_offset_ = chunk_place(place.lane % 8, place.lane / 8) * 16;
    read_offset_ = chunk_place(place.row4, place.quarter) * 16;
    scales_offset_ = kBlockSteps * kStepWords * 4 + place.lane * 8;
    const int blocks = (args.columns + kBlockInputs - 1) / kBlockInputs;
    const int panel_blocks = place.block_end - place.block_begin;
    block_step_ = kSharedTiles ? place.warps : 1;
    per_tile_ = kSharedTiles ? (panel_blocks + place.warps - 1) / place.warps : panel_blocks;
    first_block_ = place.block_begin + (kSharedTiles ? place.warp : 0);
    // Neighbouring thread blocks take neighbouring tiles.
    tile_step_ = args.blocks_per_panel * (kSharedTiles ? 1 : place.warps);
    first_tile_ = blockIdx.x + (kSharedTiles ? 0 : place.warp * args.blocks_per_panel);
    unit_skip_ = tile_step_ * blocks - per_tile_ * block_step_;

    tile_ = first_tile_;
    block_ = first_block_;
    unit_ = tile_ * blocks + block_;
    left_ = per_tile_;
    slot_ = begin_;
    words_ = args.tiles + place.lane * 4;
    scales_ = args.scales + place.row4 * 4;
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
    if (tile_ < args_.tile_count && block_ < block_end_ && !args_.streams_only) {
      if constexpr (kWhole) {
        const uint32_t* words = words_ + static_cast<int64_t>(unit_) * (kBlockSteps * kStepWords);
#pragma unroll
        for (int step = 0; step < kBlockSteps; ++step) {
          copy16_async(slot_ + copy_offset_ + step * kStepWords * 4, words + step * kStepWords);
        }
        copy8_async(slot_ + scales_offset_, scales_ + static_cast<int64_t>(unit_) * kTileRows);
      } else {
        fetch_cut();
      }
    }
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

  __device__ uint4 words(const Cursor& now, int step) const {
    return load16_shared(now.slot + read_offset_ + step * kStepWords * 4);
  }

  // Scales of the lane's four rows in group `group` of the block, for decoded codes.
  template <typename Type>
  __device__ void scales(const Cursor& now, int group, float (&out)[4]) const {
    const uint2 bits = load8_shared(now.slot + scales_offset_ + group * static_cast<int>(kScaleBytes));
    const uint16_t four[4] = {static_cast<uint16_t>(bits.x), static_cast<uint16_t>(bits.x >> 16),
                              static_cast<uint16_t>(bits.y), static_cast<uint16_t>(bits.y >> 16)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scale = args_.bfloat_scales ? BFloat::to_float(four[i]) : Half::to_float(four[i]);
      out[i] = scale * (1.0f / Type::kDecodedUnit);
    }
  }

 private:
  __device__ uint32_t next(uint32_t slot) const {
    slot += args_.stage_bytes;
    return slot == end_ ? begin_ : slot;
  }

  __device__ void fetch_cut() const {
    const int64_t tile_words = static_cast<int64_t>(args_.columns) / kTileInputs * kTileWords;
    const uint32_t* words = words_ + tile_ * tile_words + block_ * (kBlockSteps * kStepWords);
    for (int step = 0; step < kBlockSteps; ++step) {
      if (block_ * kBlockInputs + step * kStepInputs < args_.columns) {
        copy16_async(slot_ + copy_offset_ + step * kStepWords * 4, words + step * kStepWords);
      }
    }
    const int groups = args_.columns / args_.group_size, in_block = kBlockInputs / args_.group_size;
    for (int g = 0; g < in_block && block_ * in_block + g < groups; ++g) {
      copy8_async(slot_ + scales_offset_ + g * static_cast<int>(kScaleBytes),
                  scales_ + (static_cast<int64_t>(tile_) * groups + block_ * in_block + g) * kTileRows);
    }
  }

  const GemmArgs& args_;
  const int block_end_;
  uint32_t begin_, end_, slot_;
  int copy_offset_, read_offset_, scales_offset_, block_step_, per_tile_, first_block_, tile_step_, first_tile_, unit_skip_;
  int tile_, block_, unit_, left_;
  const uint32_t* words_;
  const uint16_t* scales_;
};

}  // namespace orth
