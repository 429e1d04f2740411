// x in shared memory, as the tensor cores' other operand and for the streams' gathers.
#pragma once

#include "gemm_args.cuh"
#include "transpose.cuh"

namespace orth {

// Up to kRows rows of x, all columns, twice: in the format of x, each eight inputs in the order of their
// pairs, 0 4 1 5 2 6 3 7; and as floats, for gathers, with a zero in column K.
template <typename Type, int kRows>
class XRows {
 public:
  __device__ XRows(const GemmArgs& args, const Place& place, char* shared)
      : args_(args), shared_(shared), inside_(place.row4 < args.batch),
        mine_(shared_address(shared) + place.row4 * args.x_stride + place.quarter * 16),
        floats_(shared_address(shared) + args.batch * args.x_stride) {}

  // All columns, whatever the panel. meanwhile() runs while the first of them are on their way.
  template <typename Meanwhile>
  __device__ __forceinline__ void load(const Panel&, const Meanwhile& meanwhile) {
    const int units = args_.columns / 8, step = static_cast<int>(blockDim.x), unit = static_cast<int>(threadIdx.x);
    const uint4 first = item(0, unit, units), second = item(0, unit + step, units);
    meanwhile();
    put(0, unit, units, first);
    put(0, unit + step, units, second);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (kRows > 1 && m >= args_.batch) break;
#pragma unroll 2
      for (int i = unit + (m == 0 ? 2 * step : 0); i < units; i += step) put(m, i, units, item(m, i, units));
    }
    if (unit < args_.batch) *floats(unit, units) = make_float4(0, 0, 0, 0);
  }

  // operand(step, octet) of block `block`: x for both products of a step.
  __device__ auto operands(int block) const {
    const uint32_t from = mine_ + block * (kBlockInputs * 2);
    const bool inside = inside_;
    return [from, inside](int step, int) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (inside) v = load16_shared(from + step * (kStepInputs * 2));
      return v;
    };
  }

  // x[m, column]
  __device__ float at(int m, uint32_t column) const {
    return load_float_shared(floats_ + column * 4 + 2 * m * args_.x_stride);
  }

 private:
  __device__ float4* floats(int m, int unit) const {
    return reinterpret_cast<float4*>(shared_ + (args_.batch + 2 * m) * args_.x_stride + unit * 32);
  }

  // Eight inputs.
  __device__ uint4 item(int m, int unit, int units) const {
    return unit < units ? load16_in_order(args_.x + static_cast<int64_t>(m) * args_.columns + unit * 8) : make_uint4(0, 0, 0, 0);
  }

  __device__ __forceinline__ void put(int m, int unit, int units, const uint4& v) const {
    if (unit >= units) return;
    *reinterpret_cast<uint4*>(shared_ + m * args_.x_stride + unit * 16) = in_pairs(v);
    floats(m, unit)[0] = four(v.x, v.y);
    floats(m, unit)[1] = four(v.z, v.w);
  }

  __device__ static uint4 in_pairs(const uint4& v) {
    return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                      __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632));
  }

  __device__ static float4 four(uint32_t a, uint32_t b) {
    return make_float4(Type::to_float(static_cast<uint16_t>(a)), Type::to_float(static_cast<uint16_t>(a >> 16)),
                       Type::to_float(static_cast<uint16_t>(b)), Type::to_float(static_cast<uint16_t>(b >> 16)));
  }

  const GemmArgs& args_;
  char* shared_;
  const bool inside_;
  const uint32_t mine_, floats_;
};

// The rows of a panel of x, transposed: a plane for each octet.
template <typename Type, int kOctets>
class XPlanes {
 public:
  __device__ XPlanes(const GemmArgs& args, const Place& place, char* shared)
      : args_(args), shared_(shared), address_(shared_address(shared)), plane_bytes_(args.x_bytes / kOctets) {
    const int input = ldmatrix_input(place.lane);
    even_ = address_ + unit_of_input(input) * 16;
    odd_ = address_ + unit_of_input(kStepInputs + input) * 16;
  }

  template <typename Meanwhile>
  __device__ __forceinline__ void load(const Panel& panel, const Meanwhile& meanwhile) {
    first_ = panel.begin * kBlockInputs;
    inputs_ = min(panel.end * kBlockInputs, args_.columns) - first_;
    const int octet = static_cast<int>(threadIdx.x) % kOctets, mine = static_cast<int>(threadIdx.x) / kOctets;
    const int eights = inputs_ / 8, step = static_cast<int>(blockDim.x) / kOctets;
    char* plane = shared_ + octet * plane_bytes_;
    const int rows = args_.batch - octet * 8;
    const uint16_t* from = args_.x + static_cast<int64_t>(octet) * 8 * args_.columns + first_;
    uint4 v[8];
    const auto get = [&](int eight) {
#pragma unroll
      for (int m = 0; m < 8; ++m) {
        const bool inside = m < rows && eight < eights;
        v[m] = inside ? load16_in_order(from + static_cast<int64_t>(m) * args_.columns + eight * 8) : make_uint4(0, 0, 0, 0);
      }
    };
    get(mine);
    meanwhile();
#pragma unroll 1
    for (int eight = mine; eight < eights; eight += step) {
      transpose_eight([&](int m) { return v[m]; }, [eight](int k) { return unit_of_input(eight * 8 + k); }, plane);
      get(eight + step);
    }
    if (threadIdx.x < kOctets) *reinterpret_cast<uint4*>(plane + zeros()) = make_uint4(0, 0, 0, 0);
  }

  __device__ auto operands(int block) const {
    const uint32_t from = (block * kBlockInputs - first_) * 16;
    const uint32_t even = even_ + from, odd = odd_ + from;
    const int plane_bytes = plane_bytes_;
    return [even, odd, plane_bytes](int step, int octet) {
      return load_matrices_transposed((step % 2 == 0 ? even : odd) + step / 2 * (2 * kStepInputs * 16) + octet * plane_bytes);
    };
  }

  // Eight rows of x at `column` are the 16 bytes there; zeros where another panel has it, as inside tells.
  __device__ uint32_t unit(uint32_t column, bool& inside) const {
    const uint32_t local = column - static_cast<uint32_t>(first_);
    inside = local < static_cast<uint32_t>(inputs_);
    return address_ + (inside ? unit_of_input(static_cast<int>(local)) * 16 : zeros());
  }

  __device__ uint4 load_unit(uint32_t unit, int octet) const { return load16_shared(unit + octet * plane_bytes_); }

 private:
  __device__ int zeros() const { return plane_bytes_ - kPlanePad * 16; }

  const GemmArgs& args_;
  char* shared_;
  const uint32_t address_;
  const int plane_bytes_;
  uint32_t even_, odd_;
  int first_ = 0, inputs_ = 0;
};

}  // namespace orth
