// A block of the base times transposed x on the tensor cores, for many rows of x.
//
// Codes go into tensor-core operands unscaled: their products with x are exact, and a group's float
// sum is multiplied by its scale. While products are under way, the codes of the next step are decoded.
#pragma once

#include "base_blocks.cuh"
#include "warpgroup.cuh"

namespace orth {

// kWarpgroup: four neighbouring warps multiply together; they have the same x and come here together.
template <typename Type, int kOctets, bool kWhole, bool kWarpgroup>
class WideProducts {
 public:
  __device__ WideProducts(const GemmArgs& args, const Lane& place, const BaseBlocks<kWhole>& blocks)
      : args_(args), blocks_(blocks), lane_offset_(place.lane * 16) {}

  // total += the block in shared memory at `slot`, whose first input is `first`, times x at `planes`.
  __device__ void add(uint32_t slot, int first, uint32_t planes, Sums<kOctets>& total) const {
    Sums<kOctets> sum;
    uint32_t a[2][2][2][4];
    if constexpr (kWhole) {
      uint4 words = blocks_.words(slot, 0);
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) {
        const uint4 now = words;
        if (step + 1 < kBlockSteps) words = blocks_.words(slot, step + 1);
        if (step == 0) {
          multiply<true>(now, planes, step, a[0], sum);
        } else {
          multiply<false>(now, planes, step, a[step % 2], sum);
          if constexpr (kWarpgroup) wait_products<1, kOctets>(sum);  // for the registers of the step before
        }
      }
      scale(slot, 0, sum, total);
    } else {
      const int group_steps = args_.group_size / kStepInputs;
#pragma unroll 1
      for (int step = 0; step < kBlockSteps && first + step * kStepInputs < args_.columns; ++step) {
        const uint4 words = blocks_.words(slot, step);
        if (step % group_steps == 0) {
          multiply<true>(words, planes, step, a[0], sum);
        } else {
          multiply<false>(words, planes, step, a[0], sum);
        }
        if constexpr (kWarpgroup) wait_products<0, kOctets>(sum);
        if ((step + 1) % group_steps == 0) scale(slot, step / group_steps, sum, total);
      }
    }
  }

 private:
  // The operands of a product block, of both products.
  __device__ static void decode(uint32_t upper_word, uint32_t lower_word, uint32_t (&a)[2][4]) {
    uint32_t upper[4], lower[4];
    Type::decode(upper_word, upper);
    Type::decode(lower_word, lower);
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      a[product][0] = upper[2 * product], a[product][1] = lower[2 * product];
      a[product][2] = upper[2 * product + 1], a[product][3] = lower[2 * product + 1];
    }
  }

  // sum = a step's products where kFirst, else sum += them; a: the operands, [product block][product].
  template <bool kFirst>
  __device__ void multiply(const uint4& words, uint32_t planes, int step, uint32_t (&a)[2][2][4],
                           Sums<kOctets>& sum) const {
    decode(words.x, words.y, a[0]);
    if constexpr (kWarpgroup) {
      // The second block's codes are decoded while the first block is multiplied.
      const uint64_t x = wide_operand(planes, kPlaneBytes) + static_cast<uint32_t>(step * kStepInputs);
      begin_products();
      warpgroup_product<Type, kOctets, 0, kFirst>(sum, a[0][0], x);
      warpgroup_product<Type, kOctets, 0, false>(sum, a[0][1], x + kStepInputs / 2);
      decode(words.z, words.w, a[1]);
      begin_products();
      warpgroup_product<Type, kOctets, 1, kFirst>(sum, a[1][0], x);
      warpgroup_product<Type, kOctets, 1, false>(sum, a[1][1], x + kStepInputs / 2);
      commit_products();
    } else {
      decode(words.z, words.w, a[1]);
      const uint32_t from = planes + lane_offset_ + step * kStepInputs * 16;
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        const uint4 x = load_matrices_transposed(from + octet * kPlaneBytes);
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          float(&c)[4] = sum[octet][block];
          if (kFirst) c[0] = c[1] = c[2] = c[3] = 0.0f;
          const auto& first = a[block][0];
          Type::mma(c, first[0], first[1], first[2], first[3], x.x, x.y);
        }
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          const auto& second = a[block][1];
          Type::mma(sum[octet][block], second[0], second[1], second[2], second[3], x.z, x.w);
        }
      }
    }
  }

  // total += scale * sum of a group.
  __device__ void scale(uint32_t slot, int group, Sums<kOctets>& sum, Sums<kOctets>& total) const {
    float s[4];
    blocks_.template scales<Type>(slot, group, s);
    if constexpr (kWarpgroup) wait_products<0, kOctets>(sum);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        total[octet][i / 4][i % 4] = fmaf(s[i / 2], sum[octet][i / 4][i % 4], total[octet][i / 4][i % 4]);
      }
    }
  }

  const GemmArgs& args_;
  const BaseBlocks<kWhole> blocks_;
  const int lane_offset_;
};

}  // namespace orth
