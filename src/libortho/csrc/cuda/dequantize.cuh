// The base as a dense matrix, for a library's matmul on large batches.
#pragma once

#include "formats.cuh"
#include "../core/layout.h"

namespace orth {

constexpr int kDequantizeColumns = 32;  // tile columns that a thread block takes
constexpr int kDequantizeThreads = 256;

// w [rows, columns] in the format of Type, each weight rounded once. Grid: (columns / 256, tiles).
template <typename Type>
__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize(const uint32_t* tiles, const uint16_t* scales, bool bfloat_scales, int rows, int columns,
               int group_size, uint16_t* w) {
  __shared__ uint32_t words[kDequantizeColumns][kTileRows + 1];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = kDequantizeThreads / 32;
  const int tile = blockIdx.y, first = blockIdx.x * kDequantizeColumns, count = columns / 8;
  for (int i = warp; i < kDequantizeColumns && first + i < count; i += warps) {
    words[i][lane] = tiles[(static_cast<int64_t>(tile) * count + first + i) * kTileWords + lane];
  }
  __syncthreads();
  const int column = first + lane;
  if (column >= count) return;
  const int group = column * 8 / group_size, groups = columns / group_size;
  for (int row = warp; row < kTileRows && tile * 32 + row < rows; row += warps) {
    const uint16_t bits = scales[(static_cast<int64_t>(tile) * groups + group) * kTileRows + row];
    const float scale = bfloat_scales ? BFloat::to_float(bits) : Half::to_float(bits);
    const uint32_t word = words[lane][row];
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int low = static_cast<int>(word << (28 - 8 * i)) >> 28, high = static_cast<int>(word << (24 - 8 * i)) >> 28;
      out[i] = Type::from_float(static_cast<float>(low) * scale) |
               static_cast<uint32_t>(Type::from_float(static_cast<float>(high) * scale)) << 16;
    }
    *reinterpret_cast<uint4*>(w + static_cast<int64_t>(tile * 32 + row) * columns + column * 8) =
        make_uint4(out[0], out[1], out[2], out[3]);
  }
}

}  // namespace orth
