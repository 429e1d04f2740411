// The number formats of x: conversions, the decoding of a word of codes, the tensor-core product.
#pragma once

#ifdef ORTH_EMULATED
#include "emulated_primitives.h"
#else
#include "primitives.cuh"
#endif

namespace orth {

constexpr uint32_t kAndXor = (0xf0 & 0xcc) ^ 0xaa;  // (a & b) ^ c, as a table for lop3

struct Half {
  static constexpr bool kIsBFloat = false;
  static constexpr float kDecodedUnit = 1.0f;  // of a decoded code
  __device__ static float to_float(uint16_t bits) { return half_bits_to_float(bits); }
  __device__ static uint16_t from_float(float v) { return float_to_half_bits(v); }

  // pair[p] = codes p and p + 4 of the word. A nibble, its sign bit flipped, in the mantissa of 1024
  // reads 1024 + 8 + code; four bits higher it reads 1024 + 16 (8 + code).
  __device__ static void decode(uint32_t word, uint32_t (&pair)[4]) {
    const uint32_t high = word >> 8;
    pair[0] = fma_half2(lop3<kAndXor>(word, 0x000f000f, 0x64086408), 0x3c003c00, 0xe408e408);  // - 1032
    pair[1] = fma_half2(lop3<kAndXor>(word, 0x00f000f0, 0x64806480), 0x2c002c00, 0xd480d480);  // / 16 - 72
    pair[2] = fma_half2(lop3<kAndXor>(high, 0x000f000f, 0x64086408), 0x3c003c00, 0xe408e408);
    pair[3] = fma_half2(lop3<kAndXor>(high, 0x00f000f0, 0x64806480), 0x2c002c00, 0xd480d480);
  }

  __device__ static void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                             uint32_t b1) {
    mma_half(c, a0, a1, a2, a3, b0, b1);
  }
};

struct BFloat {
  static constexpr bool kIsBFloat = true;
  static constexpr float kDecodedUnit = 0.25f;
  __device__ static float to_float(uint16_t bits) { return bfloat_bits_to_float(bits); }
  __device__ static uint16_t from_float(float v) { return float_to_bfloat_bits(v); }

  // A nibble, its sign bit flipped, in the mantissa of 128 reads 128 + 8 + code. Four bits higher its
  // top bit is the exponent's lowest: with no other exponent bit, where bf16 is still linear, it reads
  // 2^-129 (8 + code), and the largest power of two brings that to (8 + code) / 4. So codes come out
  // as quarters.
  __device__ static void decode(uint32_t word, uint32_t (&pair)[4]) {
    const uint32_t high = word >> 8;
    pair[0] = fma_bfloat2(lop3<kAndXor>(word, 0x000f000f, 0x43084308), 0x3e803e80, 0xc208c208);  // / 4 - 34
    pair[1] = fma_bfloat2(lop3<kAndXor>(word, 0x00f000f0, 0x00800080), 0x7f007f00, 0xc000c000);  // 2^127 v - 2
    pair[2] = fma_bfloat2(lop3<kAndXor>(high, 0x000f000f, 0x43084308), 0x3e803e80, 0xc208c208);
    pair[3] = fma_bfloat2(lop3<kAndXor>(high, 0x00f000f0, 0x00800080), 0x7f007f00, 0xc000c000);
  }

  __device__ static void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                             uint32_t b1) {
    mma_bfloat(c, a0, a1, a2, a3, b0, b1);
  }
};

// Two fp16 values, each the exact sum of two bf16 ones.
__device__ inline void split_halves(uint32_t values, uint32_t& high, uint32_t& low) {
  high = low = 0;
#pragma unroll
  for (int i = 0; i < 32; i += 16) {
    const float whole = Half::to_float(static_cast<uint16_t>(values >> i));
    const uint16_t rounded = BFloat::from_float(whole);
    high |= static_cast<uint32_t>(rounded) << i;
    low |= static_cast<uint32_t>(BFloat::from_float(whole - BFloat::to_float(rounded))) << i;
  }
}

}  // namespace orth
