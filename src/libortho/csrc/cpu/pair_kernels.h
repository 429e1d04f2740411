// The INT4 base for bf16 and fp16 rows on AVX-512 BF16: one vdpbf16ps multiplies 32 pairs.
//
// Codes -8 .. 7 are exact in bf16, and so is x: a bf16 row as it is, an fp16 row as the sum of two
// bf16 rows (8 leading bits, 3 trailing ones). So products are exact, sums run in float, and a
// group's sum meets its scale in float, as everywhere. vdpbf16ps takes subnormals for 0.
//
// Word r of a tile holds the codes of inputs 8 b + j in nibble j, so its 16-bit halves, shifted by
// 4 j, begin with the codes of inputs 8 b + j and 8 b + 4 + j. vpermw looks a half's low five bits
// up, in a table that ignores the fifth: 32 codes. The inputs are paired alike (packed pairs):
//   block of R rows: [K/2, R] words; word (4 b + j, r) = x[r, 8 b + j] | x[r, 8 b + 4 + j] << 16
#pragma once

#include <immintrin.h>

#include <utility>

#include "../core/layout.h"
#include "../core/numeric.h"
#include "kernels.h"

namespace orth {

struct PairKernels {
  static constexpr int kVectors = kTileRows / 16;

  static inline __m512i codes_of(__m512i words, int j) {
    const __m512i table = _mm512_set_epi16(
        // bf16 of -1, -2 … -8, then 7 … 0; twice, since the fifth bit of an index is the next code's
        (short)0xbf80, (short)0xc000, (short)0xc040, (short)0xc080, (short)0xc0a0, (short)0xc0c0,
        (short)0xc0e0, (short)0xc100, 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0,
        (short)0xbf80, (short)0xc000, (short)0xc040, (short)0xc080, (short)0xc0a0, (short)0xc0c0,
        (short)0xc0e0, (short)0xc100, 0x40e0, 0x40c0, 0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0);
    return _mm512_permutexvar_epi16(j == 0 ? words : _mm512_srli_epi32(words, 4 * j), table);
  }

  static inline __m512 dot(__m512 sum, __m512i codes, __m512i pair) {
    return _mm512_dpbf16_ps(sum, (__m512bh)codes, (__m512bh)pair);
  }

  static inline __m512 load_scale(const char* scales, DType type) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
    if (type == DType::kFloat16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  template <int S, int V>
  static inline void clear(__m512 (&sums)[S][V]) {
#pragma GCC unroll 24
    for (int s = 0; s < S; ++s) {
      for (int v = 0; v < V; ++v) sums[s][v] = _mm512_setzero_ps();
    }
  }

  // Of more sums than rows only the first R count: the others have been added to them.
  template <int R, int S, int V>
  static inline void add_scaled(const __m512 (&sums)[S][V], const char* scales, DType type,
                                float* totals) {
    for (int v = 0; v < V; ++v) {
      const __m512 scale = load_scale(scales + v * 32, type);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) {
        float* total = totals + r * kTileRows + v * 16;
        _mm512_storeu_ps(total, _mm512_fmadd_ps(sums[r][v], scale, _mm512_loadu_ps(total)));
      }
    }
  }

  // totals[R, 32] += one group of a tile, its codes decoded as they are used.
  template <int R, int V>
  static inline void part_from_words(const uint32_t* words, int64_t group, const uint32_t* pairs,
                                     const char* scales, DType type, float* totals) {
    // Few rows: several sums for each, or the latency of one addition would set the pace.
    constexpr int kSplit = R == 1 ? 4 : R <= 3 ? 2 : 1;
    __m512 sums[kSplit * R][V];
    clear(sums);
    for (int64_t b = 0; b < group / kTileInputs; ++b) {
      __m512i held[V];
      for (int v = 0; v < V; ++v) {
        const uint32_t* from = words + b * kTileWords + 16 * v;
        held[v] = _mm512_loadu_si512(from);
        _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __m512i codes[V];
        for (int v = 0; v < V; ++v) codes[v] = codes_of(held[v], j);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
          const __m512i pair = _mm512_set1_epi32(static_cast<int>(pairs[(4 * b + j) * R + r]));
          for (int v = 0; v < V; ++v) {
            __m512& sum = sums[j % kSplit * R + r][v];
            sum = dot(sum, codes[v], pair);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int s = R; s < kSplit * R; ++s) {
      for (int v = 0; v < V; ++v) sums[s % R][v] = _mm512_add_ps(sums[s % R][v], sums[s][v]);
    }
    add_scaled<R>(sums, scales, type, totals);
  }

  template <int R>
  static void group_from_words(const uint32_t* words, int64_t group, const uint32_t* pairs,
                               const char* scales, DType type, float* totals) {
    if constexpr (R <= kPairBlockRows) {
      part_from_words<R, kVectors>(words, group, pairs, scales, type, totals);
    } else {
      for (int v = 0; v < kVectors; ++v) {
        part_from_words<R, 1>(words + 16 * v, group, pairs, scales + 32 * v, type, totals + 16 * v);
      }
    }
  }

  // The same from codes decoded before, [group / 2, 32] words.
  template <int R>
  static void group_from_codes(const uint32_t* codes, int64_t group, const uint32_t* pairs,
                               const char* scales, DType type, float* totals) {
    __m512 sums[R][kVectors];
    clear(sums);
    for (int64_t p = 0; p < group / 2; ++p) {
      __m512i held[kVectors];
      for (int v = 0; v < kVectors; ++v) held[v] = _mm512_loadu_si512(codes + p * kTileRows + 16 * v);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const __m512i pair = _mm512_set1_epi32(static_cast<int>(pairs[p * R + r]));
        for (int v = 0; v < kVectors; ++v) sums[r][v] = dot(sums[r][v], held[v], pair);
      }
    }
    add_scaled<R>(sums, scales, type, totals);
  }

  // Bytes ahead: nearly a plain read's pace where weights lie on large pages. On small ones every
  // page ahead is a TLB miss, and the hardware alone does better.
  static constexpr int64_t kPrefetch = 4096;

  static void decode_group(const uint32_t* words, int64_t group, uint32_t* codes) {
    for (int64_t b = 0; b < group / kTileInputs; ++b) {
      for (int v = 0; v < kVectors; ++v) {
        const uint32_t* from = words + b * kTileWords + 16 * v;
        const __m512i held = _mm512_loadu_si512(from);
        _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetch, _MM_HINT_T0);
        uint32_t* out = codes + b * 4 * kTileRows + 16 * v;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + j * kTileRows, codes_of(held, j));
      }
    }
  }

  template <int64_t Count>
  using Upto = std::make_integer_sequence<int, static_cast<int>(Count)>;
  using Group = void (*)(const uint32_t*, int64_t, const uint32_t*, const char*, DType, float*);
  template <int... I>
  static Group from_words(int64_t rows, std::integer_sequence<int, I...>) {
    static constexpr Group kAll[] = {group_from_words<I + 1>...};
    return kAll[rows - 1];
  }
  template <int... I>
  static Group from_codes(int64_t rows, std::integer_sequence<int, I...>) {
    static constexpr Group kAll[] = {group_from_codes<I + 1>...};
    return kAll[rows - 1];
  }

  static void forward(const BaseLayer& base, const uint32_t* pairs, int64_t rows, int64_t pieces,
                      int64_t begin, int64_t end, float* y, uint32_t* scratch) {
    const int64_t k = base.columns, n = base.rows, group = base.group_size, groups = k / group;
    const int64_t virtual_rows = rows * pieces;
    const int64_t scale_bytes = kTileRows * item_size(base.scale_type);
    const int64_t panel = virtual_rows > kPairDirectRows ? kPairPanel / group : groups;
    float* totals = reinterpret_cast<float*>(scratch + group / 2 * kTileRows);
    const Group direct = from_words(virtual_rows < kPairDirectRows ? virtual_rows : kPairDirectRows,
                                    Upto<kPairDirectRows>());
    // Every tile of a panel of inputs before the next panel: the panel's rows stay in the cache.
    for (int64_t first = 0; first < groups; first += panel) {
      const int64_t last = first + panel < groups ? first + panel : groups;
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t left = n - tile * kTileRows, width = left < kTileRows ? left : kTileRows;
        for (int64_t i = 0; i < virtual_rows * kTileRows; ++i) totals[i] = 0.0f;
        for (int64_t g = first; g < last; ++g) {
          const uint32_t* words = base.tiles + (tile * k + g * group) / kTileInputs * kTileWords;
          const char* scales = static_cast<const char*>(base.scales) + (tile * groups + g) * scale_bytes;
          if (virtual_rows <= kPairDirectRows) {
            direct(words, group, pairs + g * group / 2 * virtual_rows, scales, base.scale_type, totals);
            continue;
          }
          decode_group(words, group, scratch);
          for (PairBlocks block(virtual_rows); block.begin < virtual_rows; block.next()) {
            const uint32_t* part = pairs + block.begin * k / 2 + g * group / 2 * block.rows;
            const Group step = from_codes(block.rows, Upto<kPairBlockRows>());
            step(scratch, group, part, scales, base.scale_type, totals + block.begin * kTileRows);
          }
        }
        for (int64_t i = 0; i < rows; ++i) {
          float* out = y + i * n + tile * kTileRows;
          const float* total = totals + i * pieces * kTileRows;
          for (int64_t r = 0; r < width; ++r) {
            float sum = pieces == 2 ? total[r] + total[kTileRows + r] : total[r];
            out[r] = first == 0 ? sum : out[r] + sum;
          }
        }
      }
    }
  }

  // 16 inputs as floats, each cut to its leading 8 bits, and what that leaves.
  static inline __m256i leading(__m512 x) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16));
  }
  static inline __m256i trailing(__m512 x) {
    const __m512 cut = _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    const __mmask16 finite = static_cast<__mmask16>(~_mm512_fpclass_ps_mask(x, 0x99));
    return leading(_mm512_maskz_sub_ps(finite, x, cut));  // of Inf and NaN: 0
  }
  static inline __m256i paired(__m256i x) {
    return _mm256_unpacklo_epi16(x, _mm256_unpackhi_epi64(x, x));
  }

  static void pack(const void* x, DType type, int64_t rows, int64_t k, int64_t pieces, int64_t begin,
                   int64_t end, uint32_t* out) {
    const uint16_t* bits = static_cast<const uint16_t*>(x);
    const int64_t virtual_rows = rows * pieces;
    for (PairBlocks block(virtual_rows); block.begin < virtual_rows; block.next()) {
      uint32_t* to = out + block.begin * k / 2;
      for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t row = (block.begin + r) / pieces, piece = (block.begin + r) % pieces;
        for (int64_t column = begin; column < end; column += 16) {
          __m256i items = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + row * k + column));
          if (type == DType::kFloat16) {
            const __m512 wide = _mm512_cvtph_ps(items);
            items = piece == 0 ? leading(wide) : trailing(wide);
          }
          uint32_t words[8];
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), paired(items));
          uint32_t* target = to + column / 2 * block.rows + r;
          for (int i = 0; i < 8; ++i) target[i * block.rows] = words[i];
        }
      }
    }
  }
};

}  // namespace orth
