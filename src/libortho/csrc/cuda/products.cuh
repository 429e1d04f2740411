// A block of the base times x on the tensor cores.
//
// Codes go into tensor-core operands unscaled: their products with x are exact, and a group's float
// sum is multiplied by its scale.
#pragma once

#include "base_blocks.cuh"
#include "sums.cuh"

namespace orth {

template <typename Type, int kOctets, bool kWhole>
class Products {
 public:
  __device__ Products(const GemmArgs& args, const BaseBlocks<kWhole>& blocks) : args_(args), blocks_(blocks) {}

  // total += the block in shared memory at `slot`, whose first input is `first`. operand(step, octet)
  // is x for both products of a step.
  template <typename Operand>
  __device__ void add(uint32_t slot, int first, const Operand& operand, Sums<kOctets>& total) const {
    Sums<kOctets> sum = {};
    if constexpr (kWhole) {
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) multiply(slot, step, operand, sum);
      scale(slot, 0, sum, total);
    } else {
      const int group_steps = args_.group_size / kStepInputs;
#pragma unroll 1
      for (int step = 0; step < kBlockSteps && first + step * kStepInputs < args_.columns; ++step) {
        multiply(slot, step, operand, sum);
        if ((step + 1) % group_steps == 0) scale(slot, step / group_steps, sum, total);
      }
    }
  }

 private:
  template <typename Operand>
  __device__ void multiply(uint32_t slot, int step, const Operand& operand, Sums<kOctets>& sum) const {
    const uint4 words = blocks_.words(slot, step);
    uint32_t a[4][4];
    Type::decode(words.x, a[0]);
    Type::decode(words.y, a[1]);
    Type::decode(words.z, a[2]);
    Type::decode(words.w, a[3]);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const uint4 b = operand(step, octet);
      Type::mma(sum[octet][0], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
      Type::mma(sum[octet][1], a[2][0], a[3][0], a[2][1], a[3][1], b.x, b.y);
      Type::mma(sum[octet][0], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
      Type::mma(sum[octet][1], a[2][2], a[3][2], a[2][3], a[3][3], b.z, b.w);
    }
  }

  // total += scale * sum of a group; sum = 0.
  __device__ void scale(uint32_t slot, int group, Sums<kOctets>& sum, Sums<kOctets>& total) const {
    float s[4];
    blocks_.template scales<Type>(slot, group, s);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& c = sum[octet][i / 4][i % 4];
        total[octet][i / 4][i % 4] = fmaf(s[i / 2], c, total[octet][i / 4][i % 4]);
        c = 0.0f;
      }
    }
  }

  const GemmArgs& args_;
  const BaseBlocks<kWhole> blocks_;
};

}  // namespace orth
