// What one instruction set offers: a table of kernels over ranges of tiles, slices or chunks.
#pragma once

#include <cstdint>

#include "../core/layer.h"

namespace orth {

// T is float or double. `lanes`, chunks and packed rows: see layout.h.
template <typename T>
struct Kernels {
  // out[i] = T(data[i]); data[i] = rounded(in[i]).
  void (*load)(const void* data, DType type, int64_t count, T* out);
  void (*store)(const T* in, DType type, int64_t count, void* data);
  // y[m, n] of the rows of tiles [begin, end), whole tiles; y has ldy >= 32 * tiles columns.
  // scratch: group_size * 32 elements.
  void (*base_forward)(const BaseLayer& base, const T* x, int64_t m, int64_t begin, int64_t end,
                       T* y, int64_t ldy, T* scratch);
  // w[n, k] of the rows of tiles [begin, end) that exist.
  void (*dequantize)(const BaseLayer& base, int64_t begin, int64_t end, T* w);
  // Packs columns [begin, end) of `count` rows x[rows[i]], times scale[i] if given, into one chunk.
  void (*pack)(const T* x, int64_t ldx, const int32_t* rows, const T* scale, int64_t count,
               int64_t begin, int64_t end, int64_t lanes, T* out);
  // One row: y[n] += alpha * dot, for slices [begin, end). x has a zero at column K.
  void (*gather_forward)(int64_t n, const Stream& stream, const T* x, T alpha, int64_t begin,
                         int64_t end, T* y);
  // y[rows[i], n] += alpha[i] * dot for slices [begin, end). scratch: 16 * 64 elements, then 16 for
  // every slot of the largest slice.
  void (*stream_forward)(int64_t n, int64_t k, const Stream& stream, const T* packed,
                         const int32_t* rows, const T* alpha, int64_t count, int64_t begin,
                         int64_t end, T* y, T* scratch);
  // grad_x[rows[i], k] += sum_n packed[n, i] ortho[n, k] for one chunk. scratch: 64 * K elements,
  // then 16 for every slot of the largest slice.
  void (*stream_grad_x)(int64_t n, int64_t k, const Stream& stream, const T* packed,
                        const int32_t* rows, int64_t count, int64_t chunk, T* grad_x, T* scratch);
  // grad_values of slices [begin, end); both operands packed alike.
  void (*stream_grad_values)(int64_t n, int64_t k, const Stream& stream, const T* packed_grad,
                             const T* packed_x, int64_t count, int64_t begin, int64_t end,
                             T* grad_values);
  // Rows of bf16 or fp16 as packed pairs (pair_kernels.h): `pieces` rows of bf16 for each row, 1 or
  // 2. Both null where the instruction set has no product of bf16 pairs.
  // Inputs [begin, end), multiples of 16, of every row. out: rows * pieces * K / 2 words.
  void (*pack_pairs)(const void* x, DType type, int64_t rows, int64_t k, int64_t pieces,
                     int64_t begin, int64_t end, uint32_t* out);
  // y[m, n] of the rows of tiles [begin, end) that exist; scratch: (group_size / 2 + rows * pieces)
  // * 32 words.
  void (*pairs_forward)(const BaseLayer& base, const uint32_t* pairs, int64_t rows, int64_t pieces,
                        int64_t begin, int64_t end, T* y, uint32_t* scratch);
};

// Rows of packed pairs that are multiplied at once: 24 sums beside words, codes, the table and an
// input fill the 32 registers. Up to 24 rows meet codes as they are decoded, more meet stored ones.
constexpr int64_t kPairBlockRows = 12;
constexpr int64_t kPairDirectRows = 24;
// Inputs that one pass over the tiles covers when there are more rows than that: with 128 rows, half
// of a 1 MiB cache.
constexpr int64_t kPairPanel = 2048;

// Walks the blocks of packed pairs of `all` rows: one, or as even as can be.
struct PairBlocks {
  explicit PairBlocks(int64_t all)
      : begin(0), limit(all <= kPairDirectRows ? kPairDirectRows : kPairBlockRows), left(all) {
    take();
  }
  void next() {
    begin += rows;
    left -= rows;
    take();
  }

  int64_t begin;
  int64_t rows = 0;

 private:
  void take() {
    const int64_t blocks = (left + limit - 1) / limit;
    rows = blocks == 0 ? 0 : (left + blocks - 1) / blocks;
  }
  int64_t limit, left;
};

enum class Isa : int32_t { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

const Kernels<float>* scalar_kernels();
const Kernels<double>* scalar_kernels_double();
const Kernels<float>* avx2_kernels();    // null where not compiled in
const Kernels<float>* avx512_kernels();  // null where not compiled in
const Kernels<float>* avx512bf16_kernels();  // null where not compiled in

// The instruction set in use: the best that the CPU has, or the one that LIBORTHO_ISA (scalar,
// avx2, avx512, avx512bf16) names. Throws std::runtime_error when that one cannot run here.
Isa active_isa();

template <typename T>
const Kernels<T>& active_kernels();

}  // namespace orth
