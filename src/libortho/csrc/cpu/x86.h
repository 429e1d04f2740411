// 8-lane pieces that the AVX2 and AVX-512 vectors share. Internal linkage: each file that includes
// this is compiled for its own instruction set.
#pragma once

#include <immintrin.h>

#include "../core/layout.h"
#include "../core/numeric.h"

namespace orth {

static inline __m256i load8_bits16(const void* data) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(data)));
}

static inline __m256 load8_bfloat16(const void* data) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(load8_bits16(data), 16));
}

static inline __m256 load8_half(const void* data) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(data)));
}

// The 8 codes of one word times scale: a variable shift puts each nibble at the top of its lane.
static inline void unpack8(uint32_t word, float scale, float* out) {
  const __m256i shifts = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  const __m256i top = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int32_t>(word)), shifts);
  const __m256 codes = _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 28));
  _mm256_storeu_ps(out, _mm256_mul_ps(codes, _mm256_set1_ps(scale)));
}

// out[j * ldo + i] = source[i][j]
static inline void transpose8x8(const float* const* source, float* out, int64_t ldo) {
  __m256 low[4], high[4];
  for (int i = 0; i < 4; ++i) {
    // Rows i and i + 4 side by side, so that the in-lane shuffles below finish the job.
    low[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(source[i])),
                                  _mm_loadu_ps(source[i + 4]), 1);
    high[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(source[i] + 4)),
                                   _mm_loadu_ps(source[i + 4] + 4), 1);
  }
  for (int half = 0; half < 2; ++half) {
    const __m256* in = half == 0 ? low : high;
    const __m256 a = _mm256_unpacklo_ps(in[0], in[1]), b = _mm256_unpackhi_ps(in[0], in[1]);
    const __m256 c = _mm256_unpacklo_ps(in[2], in[3]), d = _mm256_unpackhi_ps(in[2], in[3]);
    float* to = out + 4 * half * ldo;
    _mm256_storeu_ps(to, _mm256_shuffle_ps(a, c, 0x44));
    _mm256_storeu_ps(to + ldo, _mm256_shuffle_ps(a, c, 0xee));
    _mm256_storeu_ps(to + 2 * ldo, _mm256_shuffle_ps(b, d, 0x44));
    _mm256_storeu_ps(to + 3 * ldo, _mm256_shuffle_ps(b, d, 0xee));
  }
}

}  // namespace orth
