// A warp's sums over pieces of a stream: 16 slots of a slice, one entry of each of 16 output rows in a
// slot, in shared memory; products in float on the plain cores.
#pragma once

#include "stream_share.cuh"
#include "x_operand.cuh"

namespace orth {

constexpr int kValuesOffset = kPieceSlots * kSliceRows * 2;  // bytes from a piece's columns to its values

// With x as rows: lane l takes slot l / 2 of a piece, the first eight rows of the slice or the others.
template <typename Type, int kRows>
class RowSums {
 public:
  __device__ RowSums(const GemmArgs& args, const Place& place, const XRows<Type, kRows>& x)
      : args_(args), lane_(place.lane), x_(x) {}

  __device__ __forceinline__ void add(uint32_t piece, int slots) {
    const uint32_t pads = static_cast<uint32_t>(args_.columns) * 0x10001u;
    uint4 columns = make_uint4(pads, pads, pads, pads), values = make_uint4(0, 0, 0, 0);
    if (lane_ / 2 < slots) {
      columns = load16_shared(piece + lane_ * 16);
      values = load16_shared(piece + kValuesOffset + lane_ * 16);
    }
    add_pair<0>(columns.x, values.x);
    add_pair<2>(columns.y, values.y);
    add_pair<4>(columns.z, values.z);
    add_pair<6>(columns.w, values.w);
  }

  // out[m * kSumStride + row] += alpha[m] * sum, where alpha is not 0.
  __device__ __forceinline__ void put(const float* alpha, float* out) const {
    const bool b16 = lane_ & 16, b8 = lane_ & 8, b4 = lane_ & 4;
    const int row = (lane_ & 1) * 8 + b16 * 4 + b8 * 2 + b4;
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (kRows > 1 && m >= args_.batch) break;
      // The 16 lanes of eight rows halve what each holds, three times, then meet once more.
      const float(&s)[8] = sums_[m];
      float a[4], b[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = (b16 ? s[4 + i] : s[i]) + __shfl_xor_sync(0xffffffffu, b16 ? s[i] : s[4 + i], 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) b[i] = (b8 ? a[2 + i] : a[i]) + __shfl_xor_sync(0xffffffffu, b8 ? a[i] : a[2 + i], 8);
      float sum = (b4 ? b[1] : b[0]) + __shfl_xor_sync(0xffffffffu, b4 ? b[0] : b[1], 4);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if ((lane_ & 2) == 0 && alpha[m] != 0.0f) {
        float& y = out[m * kSumStride + row];
        y = fmaf(alpha[m], sum, y);
      }
    }
  }

 private:
  template <int kFirst>
  __device__ __forceinline__ void add_pair(uint32_t columns, uint32_t values) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float value = Half::to_float(static_cast<uint16_t>(values >> (16 * j)));
      const uint32_t column = columns >> (16 * j) & 0xffff;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (kRows > 1 && m >= args_.batch) break;
        sums_[m][kFirst + j] = fmaf(value, x_.at(m, column), sums_[m][kFirst + j]);
      }
    }
  }

  const GemmArgs& args_;
  const int lane_;
  const XRows<Type, kRows> x_;
  float sums_[kRows][8] = {};
};

// With x as planes: lane l takes row l % 16 of the slice, in every second slot; a unit of a plane is what
// an entry meets of eight rows of x.
template <typename Type, int kOctets>
class PlaneSums {
 public:
  __device__ PlaneSums(const GemmArgs& args, const Place& place, const XPlanes<Type, kOctets>& x)
      : args_(args), lane_(place.lane), several_(args.panels * args.passes > 1), x_(x) {}

  __device__ __forceinline__ void add(uint32_t piece, int slots) {
#pragma unroll 4
    for (int i = 0; 2 * i < slots; ++i) {
      const uint32_t at = piece + i * (4 * kSliceRows) + lane_ * 2;
      const bool here = 2 * i + lane_ / 16 < slots;
      bool inside;
      const uint32_t unit = x_.unit(here ? load2_shared(at) : args_.columns, inside);
      if (several_ && !__any_sync(0xffffffffu, inside)) continue;
      const float value = inside ? Half::to_float(load2_shared(at + kValuesOffset)) : 0.0f;
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        const uint4 x = x_.load_unit(unit, octet);
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int m = 0; m < 8; ++m) {
          const float v = Type::to_float(static_cast<uint16_t>(words[m / 2] >> (m % 2 * 16)));
          sums_[octet][m] = fmaf(value, v, sums_[octet][m]);
        }
      }
    }
  }

  __device__ __forceinline__ void put(const float* alpha, float* out) const {
    const bool upper = lane_ >= kSliceRows;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const float sum = (upper ? sums_[octet][i + 1] : sums_[octet][i]) +
                          __shfl_xor_sync(0xffffffffu, upper ? sums_[octet][i] : sums_[octet][i + 1], 16);
        const int m = octet * 8 + i + upper;
        if (m < args_.batch && alpha[m] != 0.0f) {
          float& y = out[m * kSumStride + lane_ % kSliceRows];
          y = fmaf(alpha[m], sum, y);
        }
      }
    }
  }

 private:
  const GemmArgs& args_;
  const int lane_;
  const bool several_;
  const XPlanes<Type, kOctets> x_;
  float sums_[kOctets][8] = {};
};

}  // namespace orth
