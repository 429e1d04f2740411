// The arithmetic of emulated_primitives.h: conversions, packed numbers, products of warps and warp groups.
#pragma once

namespace orth {

template <uint32_t kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int i = 0; i < 32; ++i) {
    out |= (kTable >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i;
  }
  return out;
}

inline float half_bits_to_float(uint16_t bits) { return half_to_float(bits); }
inline float bfloat_bits_to_float(uint16_t bits) { return bfloat16_to_float(bits); }
inline uint16_t float_to_half_bits(float v) { return float_to_half(v); }
inline uint16_t float_to_bfloat_bits(float v) { return float_to_bfloat16(v); }

template <typename To, typename From>
uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c, To to, From from) {
  uint32_t out = 0;
  for (int i = 0; i < 32; i += 16) {
    const float v = std::fma(to(static_cast<uint16_t>(a >> i)), to(static_cast<uint16_t>(b >> i)), to(static_cast<uint16_t>(c >> i)));
    out |= static_cast<uint32_t>(from(v)) << i;
  }
  return out;
}
inline uint32_t fma_half2(uint32_t a, uint32_t b, uint32_t c) { return fma_pair(a, b, c, half_to_float, float_to_half); }
inline uint32_t fma_bfloat2(uint32_t a, uint32_t b, uint32_t c) { return fma_pair(a, b, c, bfloat16_to_float, float_to_bfloat16); }

template <typename To>
void mma(const void* kind, float (&c)[4], const uint32_t (&operands)[6], To to) {
  auto& w = emulated::warp();
  uint32_t* in = w.in[emulated::lane()];
  std::memcpy(in, operands, sizeof operands);
  std::memcpy(in + 6, c, sizeof c);
  emulated::together(kind, [to](emulated::Warp& all) {
    const auto item = [&](int l, int reg, int half) { return static_cast<double>(to(static_cast<uint16_t>(all.in[l][reg] >> (16 * half)))); };
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        float start;
        std::memcpy(&start, &all.in[l][6 + i], 4);
        double sum = start;
        for (int k = 0; k < 16; ++k) {
          const int t = k % 8 / 2, half = k % 2, upper = k / 8;
          sum += item(row % 8 * 4 + t, row / 8 + 2 * upper, half) * item(column * 4 + t, 4 + upper, half);
        }
        const float result = static_cast<float>(sum);
        std::memcpy(&all.out[l][i], &result, 4);
      }
    }
  });
  std::memcpy(c, w.out[emulated::lane()], sizeof c);
}
inline void mma_half(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  static const char kind = 0;
  mma(&kind, c, {a0, a1, a2, a3, b0, b1}, half_to_float);
}
inline void mma_bfloat(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  static const char kind = 0;
  mma(&kind, c, {a0, a1, a2, a3, b0, b1}, bfloat16_to_float);
}

// Four warps' products, each warp for itself: they run when they are waited for, at what then lies in
// shared memory.
inline void show_to_products() {}
inline void begin_products() {}
inline void commit_products() { fiber().products.emplace_back(); }
template <int N, int kOctets>
void wait_products(float (&)[kOctets][2][4]) {
  auto& groups = fiber().products;
  while (groups.size() > N + 1) {
    for (const auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
}
template <typename Type, int kOctets, int kBlock, bool kFirst>
void warpgroup_product(float (&c)[kOctets][2][4], const uint32_t (&a)[4], uint64_t x) {
  const auto multiply = [&c, x, a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3]] {
    const auto lane = static_cast<uint32_t>(emulated::lane());
    for (uint32_t octet = 0; octet < kOctets; ++octet) {
      uint32_t b[2] = {0, 0};
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t eight = static_cast<uint32_t>(x >> 16 & 0x3fff) * (i / 2), further = static_cast<uint32_t>(x >> 32) * octet;
        const uint32_t unit = static_cast<uint32_t>(x & 0x3fff) + eight + further + lane % 4 * 2 + i % 2;
        uint16_t item;
        std::memcpy(&item, emulated::at((unit * 16 + lane / 4 * 2) | emulated::rank() << emulated::kRankBit, 2), 2);
        b[i / 2] |= static_cast<uint32_t>(item) << (16 * (i % 2));
      }
      float(&sum)[4] = c[octet][kBlock];
      if (kFirst) sum[0] = sum[1] = sum[2] = sum[3] = 0;
      Type::mma(sum, a0, a1, a2, a3, b[0], b[1]);
    }
  };
  fiber().products.back().push_back(multiply);
}

}  // namespace orth
