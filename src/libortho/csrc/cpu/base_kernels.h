// The INT4 base, written once over a vector type V; lanes are output rows.
//
// V gives: T, Reg, Words, kWidth (lanes, divides 16), kType, kRowVectors(m) (vectors of output rows
// held at once for m batch rows), load, store, zero, broadcast, fma, fma1, mul, add, sum, load_as,
// store_as, load_words, code<J>, unpack, gather, transpose8. Everything is reached through V, so
// that each instruction set gets its own symbols.
#pragma once

#include "../core/layout.h"
#include "kernels.h"

namespace orth {

template <typename V>
struct BaseKernels {
  using T = typename V::T;
  using Reg = typename V::Reg;

  // One 8-input step of MT batch rows x RT vectors of output rows, nibble J and the ones above it.
  template <int MT, int RT, int J>
  static inline void word_step(const typename V::Words* words, const T* x, int64_t ldx,
                               Reg (&sums)[MT][RT]) {
    if constexpr (J < kTileInputs) {
      Reg codes[RT];
      for (int r = 0; r < RT; ++r) codes[r] = V::template code<J>(words[r]);
      for (int i = 0; i < MT; ++i) {
        const Reg value = V::broadcast(x[i * ldx + J]);
        for (int r = 0; r < RT; ++r) sums[i][r] = V::fma(codes[r], value, sums[i][r]);
      }
      word_step<MT, RT, J + 1>(words, x, ldx, sums);
    }
  }

  template <int MT, int RT>
  static inline void add_group(const Reg (&sums)[MT][RT], const char* scales, DType scale_type,
                               bool first, T* y, int64_t ldy) {
    for (int r = 0; r < RT; ++r) {
      const Reg scale = V::load_as(scales + r * V::kWidth * item_size(scale_type), scale_type);
      for (int i = 0; i < MT; ++i) {
        T* out = y + i * ldy + r * V::kWidth;
        V::store(out, first ? V::mul(sums[i][r], scale) : V::fma(sums[i][r], scale, V::load(out)));
      }
    }
  }

  // One group of one tile for MT batch rows, codes decoded from the words as they are used.
  template <int MT>
  static inline void group_from_words(const uint32_t* words, const char* scales, DType scale_type,
                                      int64_t group, const T* x, int64_t ldx, bool first, T* y,
                                      int64_t ldy) {
    constexpr int RT = V::kRowVectors(MT);
    for (int64_t row = 0; row < kTileRows; row += RT * V::kWidth) {
      Reg sums[MT][RT];
      for (auto& line : sums) {
        for (auto& sum : line) sum = V::zero();
      }
      for (int64_t k = 0; k < group; k += kTileInputs) {
        typename V::Words held[RT];
        for (int r = 0; r < RT; ++r) {
          held[r] = V::load_words(words + k / kTileInputs * kTileWords + row + r * V::kWidth);
        }
        word_step<MT, RT, 0>(held, x + k, ldx, sums);
      }
      add_group<MT, RT>(sums, scales + row * item_size(scale_type), scale_type, first, y + row, ldy);
    }
  }

  // The same from codes decoded before, [group, 32].
  template <int MT>
  static inline void group_from_codes(const T* codes, const char* scales, DType scale_type,
                                      int64_t group, const T* x, int64_t ldx, bool first, T* y,
                                      int64_t ldy) {
    constexpr int RT = V::kRowVectors(MT);
    for (int64_t row = 0; row < kTileRows; row += RT * V::kWidth) {
      Reg sums[MT][RT];
      for (auto& line : sums) {
        for (auto& sum : line) sum = V::zero();
      }
      for (int64_t k = 0; k < group; ++k) {
        Reg held[RT];
        for (int r = 0; r < RT; ++r) held[r] = V::load(codes + k * kTileRows + row + r * V::kWidth);
        for (int i = 0; i < MT; ++i) {
          const Reg value = V::broadcast(x[i * ldx + k]);
          for (int r = 0; r < RT; ++r) sums[i][r] = V::fma(held[r], value, sums[i][r]);
        }
      }
      add_group<MT, RT>(sums, scales + row * item_size(scale_type), scale_type, first, y + row, ldy);
    }
  }

  template <int J>
  static inline void store_codes(typename V::Words words, T* out) {
    if constexpr (J < kTileInputs) {
      V::store(out + J * kTileRows, V::template code<J>(words));
      store_codes<J + 1>(words, out);
    }
  }

  static inline void decode_group(const uint32_t* words, int64_t group, T* codes) {
    for (int64_t k = 0; k < group; k += kTileInputs) {
      for (int64_t row = 0; row < kTileRows; row += V::kWidth) {
        store_codes<0>(V::load_words(words + k / kTileInputs * kTileWords + row),
                       codes + k * kTileRows + row);
      }
    }
  }

  static void base_forward(const BaseLayer& base, const T* x, int64_t m, int64_t begin, int64_t end,
                           T* y, int64_t ldy, T* scratch) {
    constexpr int64_t kDirect = 4;
    const int64_t k = base.columns, group = base.group_size, groups = k / group;
    const int64_t scale_bytes = kTileRows * item_size(base.scale_type);
    for (int64_t tile = begin; tile < end; ++tile) {
      for (int64_t g = 0; g < groups; ++g) {
        const uint32_t* words = base.tiles + (tile * k + g * group) / kTileInputs * kTileWords;
        const char* scales = static_cast<const char*>(base.scales) + (tile * groups + g) * scale_bytes;
        const T* xg = x + g * group;
        T* yt = y + tile * kTileRows;
        const bool first = g == 0;
        const DType type = base.scale_type;
        if (m <= kDirect) {
          switch (m) {
            case 1: group_from_words<1>(words, scales, type, group, xg, k, first, yt, ldy); break;
            case 2: group_from_words<2>(words, scales, type, group, xg, k, first, yt, ldy); break;
            case 3: group_from_words<3>(words, scales, type, group, xg, k, first, yt, ldy); break;
            default: group_from_words<4>(words, scales, type, group, xg, k, first, yt, ldy); break;
          }
          continue;
        }
        decode_group(words, group, scratch);
        int64_t row = 0;
        for (; row + 4 <= m; row += 4) {
          group_from_codes<4>(scratch, scales, type, group, xg + row * k, k, first, yt + row * ldy, ldy);
        }
        const T* xr = xg + row * k;
        T* yr = yt + row * ldy;
        switch (m - row) {
          case 1: group_from_codes<1>(scratch, scales, type, group, xr, k, first, yr, ldy); break;
          case 2: group_from_codes<2>(scratch, scales, type, group, xr, k, first, yr, ldy); break;
          case 3: group_from_codes<3>(scratch, scales, type, group, xr, k, first, yr, ldy); break;
          default: break;
        }
      }
    }
  }

  static void dequantize(const BaseLayer& base, int64_t begin, int64_t end, T* w) {
    const int64_t k = base.columns, group = base.group_size, groups = k / group;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t left = base.rows - tile * kTileRows;
      const int64_t rows = left < kTileRows ? left : kTileRows;
      for (int64_t g = 0; g < groups; ++g) {
        const uint32_t* words = base.tiles + (tile * k + g * group) / kTileInputs * kTileWords;
        const int64_t first_scale = (tile * groups + g) * kTileRows;
        for (int64_t row = 0; row < rows; ++row) {
          const T scale = load_item<T>(base.scales, base.scale_type, first_scale + row);
          T* out = w + (tile * kTileRows + row) * k + g * group;
          for (int64_t b = 0; b < group / kTileInputs; ++b) {
            V::unpack(words[b * kTileWords + row], scale, out + b * kTileInputs);
          }
        }
      }
    }
  }
};

}  // namespace orth
