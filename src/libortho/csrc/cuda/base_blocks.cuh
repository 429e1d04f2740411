// Blocks of the base, 32 rows x 128 inputs: copied into shared memory by a warp, and read there.
#pragma once

#include "gemm_args.cuh"

namespace orth {

// kWhole: groups of 128, hence whole blocks; otherwise groups of 32, 64 or 128 and a last block that
// may be cut short.
template <bool kWhole>
class BaseBlocks {
 public:
  __device__ BaseBlocks(const GemmArgs& args, const Lane& place) : args_(args) {
    copy_offset_ = chunk_place(place.lane % 8, place.lane / 8) * 16;
    read_offset_ = chunk_place(place.row4, place.quarter) * 16;
    scales_offset_ = kBlockSteps * kStepWords * 4 + place.lane * 8;
    words_ = args.tiles + place.lane * 4;
    scales_ = args.scales + place.row4 * 4;
    blocks_ = (args.columns + kBlockInputs - 1) / kBlockInputs;
  }

  __device__ int count() const { return blocks_; }

  // Starts the copy of a block of a tile into shared memory at `slot`.
  __device__ void copy(int tile, int block, uint32_t slot) const {
    if constexpr (kWhole) {
      const int unit = tile * blocks_ + block;
      const uint32_t* words = words_ + static_cast<int64_t>(unit) * (kBlockSteps * kStepWords);
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) {
        copy16_async(slot + copy_offset_ + step * kStepWords * 4, words + step * kStepWords);
      }
      copy8_async(slot + scales_offset_, scales_ + static_cast<int64_t>(unit) * kTileRows);
    } else {
      copy_cut(tile, block, slot);
    }
  }

  __device__ uint4 words(uint32_t slot, int step) const {
    return load16_shared(slot + read_offset_ + step * kStepWords * 4);
  }

  // Scales of the lane's four rows in group `group` of the block, for decoded codes.
  template <typename Type>
  __device__ void scales(uint32_t slot, int group, float (&out)[4]) const {
    const uint2 bits = load8_shared(slot + scales_offset_ + group * static_cast<int>(kScaleBytes));
    const uint16_t four[4] = {static_cast<uint16_t>(bits.x), static_cast<uint16_t>(bits.x >> 16),
                              static_cast<uint16_t>(bits.y), static_cast<uint16_t>(bits.y >> 16)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scale = args_.bfloat_scales ? BFloat::to_float(four[i]) : Half::to_float(four[i]);
      out[i] = scale * (1.0f / Type::kDecodedUnit);
    }
  }

 private:
  __device__ void copy_cut(int tile, int block, uint32_t slot) const {
    const int64_t tile_words = static_cast<int64_t>(args_.columns) / kTileInputs * kTileWords;
    const uint32_t* words = words_ + tile * tile_words + block * (kBlockSteps * kStepWords);
    for (int step = 0; step < kBlockSteps; ++step) {
      if (block * kBlockInputs + step * kStepInputs < args_.columns) {
        copy16_async(slot + copy_offset_ + step * kStepWords * 4, words + step * kStepWords);
      }
    }
    const int groups = args_.columns / args_.group_size, in_block = kBlockInputs / args_.group_size;
    for (int g = 0; g < in_block && block * in_block + g < groups; ++g) {
      copy8_async(slot + scales_offset_ + g * static_cast<int>(kScaleBytes),
                  scales_ + (static_cast<int64_t>(tile) * groups + block * in_block + g) * kTileRows);
    }
  }

  const GemmArgs& args_;
  int copy_offset_, read_offset_, scales_offset_, blocks_;
  const uint32_t* words_;
  const uint16_t* scales_;
};

}  // namespace orth
