// Rows of x, transposed in registers.
#pragma once

#include "formats.cuh"

namespace orth {

// Eight inputs of eight rows of x, each input to a unit of its own of a plane (core/fragments.h). row(m) is the 16
// bytes of row m, unit(k) the place of input k.
template <typename Row, typename Unit>
__device__ void transpose_eight(const Row& row, const Unit& unit, char* plane) {
  uint4 v[8];
#pragma unroll
  for (int m = 0; m < 8; ++m) v[m] = row(m);
  const auto word = [](const uint4& from, int i) { return i == 0 ? from.x : i == 1 ? from.y : i == 2 ? from.z : from.w; };
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const uint32_t select = k % 2 == 0 ? 0x5410 : 0x7632;
    uint4 out;
    out.x = __byte_perm(word(v[0], k / 2), word(v[1], k / 2), select);
    out.y = __byte_perm(word(v[2], k / 2), word(v[3], k / 2), select);
    out.z = __byte_perm(word(v[4], k / 2), word(v[5], k / 2), select);
    out.w = __byte_perm(word(v[6], k / 2), word(v[7], k / 2), select);
    *reinterpret_cast<uint4*>(plane + unit(k) * 16) = out;
  }
}

}  // namespace orth
