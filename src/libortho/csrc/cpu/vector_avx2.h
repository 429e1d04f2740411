// 8 float lanes: AVX2 + FMA + F16C.
#pragma once

#include "x86.h"

namespace orth {

struct VectorAvx2 {
  using T = float;
  using Reg = __m256;
  using Words = __m256i;
  static constexpr int kWidth = 8;
  static constexpr DType kType = DType::kFloat32;
  // 8 accumulators of 16 registers: enough to hide the latency of fma, and the codes still fit.
  static constexpr int kRowVectors(int m) { return m <= 2 ? 4 : 2; }

  static Reg load(const float* data) { return _mm256_loadu_ps(data); }
  static void store(float* data, Reg a) { _mm256_storeu_ps(data, a); }
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg broadcast(float value) { return _mm256_set1_ps(value); }
  static float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static float sum(Reg a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Reg load_as(const void* data, DType type) {
    switch (type) {
      case DType::kFloat32: return load(static_cast<const float*>(data));
      case DType::kFloat16: return load8_half(data);
      case DType::kBFloat16: return load8_bfloat16(data);
      default: return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(static_cast<const double*>(data) + 4)),
                                      _mm256_cvtpd_ps(_mm256_loadu_pd(static_cast<const double*>(data))));
    }
  }
  static void store_as(void* data, DType type, Reg a) {
    if (type == DType::kFloat32) return store(static_cast<float*>(data), a);
    if (type == DType::kFloat16) {
      return _mm_storeu_si128(static_cast<__m128i*>(data),
                              _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    float lanes[kWidth];
    store(lanes, a);
    for (int i = 0; i < kWidth; ++i) store_item<float>(data, type, i, lanes[i]);
  }
  static Words load_words(const uint32_t* data) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data));
  }
  template <int J>
  static Reg code(Words words) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 28 - 4 * J), 28));
  }
  static void unpack(uint32_t word, float scale, float* out) { unpack8(word, scale, out); }
  static Reg gather(const float* x, const uint16_t* columns) {
    return _mm256_i32gather_ps(x, load8_bits16(columns), 4);
  }
  static void transpose8(const float* const* source, float* out, int64_t ldo) {
    transpose8x8(source, out, ldo);
  }
};

}  // namespace orth
