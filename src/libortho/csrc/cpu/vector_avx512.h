// 16 float lanes: AVX-512 F, BW, DQ, VL. One vpermps looks up the code: it reads only the low four
// bits of each lane, so a shift is all that a nibble needs.
#pragma once

#include "x86.h"

namespace orth {

struct VectorAvx512 {
  using T = float;
  using Reg = __m512;
  using Words = __m512i;
  static constexpr int kWidth = 16;
  static constexpr DType kType = DType::kFloat32;
  static constexpr int kRowVectors(int /*m*/) { return 2; }

  static Reg load(const float* data) { return _mm512_loadu_ps(data); }
  static void store(float* data, Reg a) { _mm512_storeu_ps(data, a); }
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg broadcast(float value) { return _mm512_set1_ps(value); }
  static float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static float sum(Reg a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Reg load_as(const void* data, DType type) {
    const __m256i* bits = static_cast<const __m256i*>(data);
    switch (type) {
      case DType::kFloat32: return load(static_cast<const float*>(data));
      case DType::kFloat16: return _mm512_cvtph_ps(_mm256_loadu_si256(bits));
      case DType::kBFloat16:
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(bits)), 16));
      default: {
        float lanes[kWidth];
        for (int i = 0; i < kWidth; ++i) lanes[i] = load_item<float>(data, type, i);
        return load(lanes);
      }
    }
  }
  static void store_as(void* data, DType type, Reg a) {
    if (type == DType::kFloat32) return store(static_cast<float*>(data), a);
    if (type == DType::kFloat16) {
      return _mm256_storeu_si256(static_cast<__m256i*>(data),
                                 _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    float lanes[kWidth];
    store(lanes, a);
    for (int i = 0; i < kWidth; ++i) store_item<float>(data, type, i, lanes[i]);
  }
  static Words load_words(const uint32_t* data) { return _mm512_loadu_si512(data); }
  template <int J>
  static Reg code(Words words) {
    const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return _mm512_permutexvar_ps(J == 0 ? words : _mm512_srli_epi32(words, 4 * J), table);
  }
  static void unpack(uint32_t word, float scale, float* out) { unpack8(word, scale, out); }
  // Four loads and inserts a quarter: on Zen 4 half the time of vgatherdps.
  static __m128 gather4(const float* x, uint64_t columns) {
    __m128 out = _mm_load_ss(x + (columns & 0xffff));
    out = _mm_insert_ps(out, _mm_load_ss(x + (columns >> 16 & 0xffff)), 0x10);
    out = _mm_insert_ps(out, _mm_load_ss(x + (columns >> 32 & 0xffff)), 0x20);
    return _mm_insert_ps(out, _mm_load_ss(x + (columns >> 48)), 0x30);
  }
  static Reg gather(const float* x, const uint16_t* columns) {
    uint64_t four[4];
    std::memcpy(four, columns, sizeof four);
    const __m256 low = _mm256_set_m128(gather4(x, four[1]), gather4(x, four[0]));
    const __m256 high = _mm256_set_m128(gather4(x, four[3]), gather4(x, four[2]));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
  static void transpose8(const float* const* source, float* out, int64_t ldo) {
    transpose8x8(source, out, ldo);
  }
};

}  // namespace orth
