// x in shared memory, as the tensor cores' other operand and for the streams' gathers.
#pragma once

#include "gemm_args.cuh"

namespace orth {

// Up to 4 rows of x, all columns whatever the panel; zeros stand in column K. Each eight inputs lie in
// the order of their pairs: 0 4 1 5 2 6 3 7.
template <typename Type>
class XRows {
 public:
  __device__ XRows(const GemmArgs& args, const Place& place, char* shared)
      : args_(args), place_(place), shared_(shared),
        mine_(shared_address(shared) + place.row4 * args.x_stride + place.quarter * 16) {}

  __device__ void load() const {
    const int units = args_.columns / 8;
#pragma unroll 1
    for (int m = 0; m < args_.batch; ++m) {
      const uint16_t* row = args_.x + static_cast<int64_t>(m) * args_.columns;
      char* out = shared_ + m * args_.x_stride;
      for (int unit = threadIdx.x; unit < units; unit += 4 * blockDim.x) {
        uint4 v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = unit + i * static_cast<int>(blockDim.x);
          if (at < units) v[i] = load16_in_order(row + at * 8);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = unit + i * static_cast<int>(blockDim.x);
          if (at < units) *reinterpret_cast<uint4*>(out + at * 16) = in_pairs(v[i]);
        }
      }
    }
    if (threadIdx.x < args_.batch) {
      *reinterpret_cast<uint4*>(shared_ + threadIdx.x * args_.x_stride + units * 16) = make_uint4(0, 0, 0, 0);
    }
  }

  // The operand of both products of the step that begins at `input`.
  __device__ uint4 operand(int input) const {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (place_.row4 < args_.batch) v = load16_shared(mine_ + input * 2);
    return v;
  }

  // Where input `column` of row 0 lies.
  __device__ uint32_t entry(int column) const {
    return shared_address(shared_) + place_in_pairs(column) * 2;
  }

  __device__ float item(uint32_t entry, int m) const {
    return Type::to_float(load2_shared(entry + m * args_.x_stride));
  }

 private:
  const GemmArgs& args_;
  __device__ static uint4 in_pairs(const uint4& v) {
    return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                      __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632));
  }

  const Place place_;
  char* shared_;
  uint32_t mine_;
};

// Eight inputs of eight rows of x, transposed into a plane (fragments.h) from input `first` on. row(m)
// is the 16 bytes of row m.
template <typename Row>
__device__ void transpose_eight(const Row& row, int first, char* plane) {
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
    *reinterpret_cast<uint4*>(plane + unit_of_input(first + k) * 16) = out;
  }
}

// Up to 8 rows of a panel of x, transposed.
template <typename Type>
class XPlanes {
 public:
  __device__ XPlanes(const GemmArgs& args, const Place& place, char* shared)
      : args_(args), place_(place), shared_(shared), address_(shared_address(shared)) {
    zero_unit_ = static_cast<int>(plane_units(args.columns, args.panels)) - 8;
    step_input_ = ldmatrix_input(place.lane);
  }

  __device__ void load() const {
    const int end = min(place_.block_end * kBlockInputs, args_.columns);
    const int eights = (end - place_.input_begin) / 8;
#pragma unroll 2
    for (int eight = threadIdx.x; eight < eights; eight += blockDim.x) {
      const uint16_t* from = args_.x + place_.input_begin + eight * 8;
      const auto row = [&](int m) {
        return m < args_.batch ? load16_in_order(from + static_cast<int64_t>(m) * args_.columns) : make_uint4(0, 0, 0, 0);
      };
      transpose_eight(row, eight * 8, shared_);
    }
    if (threadIdx.x == 0) *reinterpret_cast<uint4*>(shared_ + zero_unit_ * 16) = make_uint4(0, 0, 0, 0);
  }

  __device__ uint4 operand(int input) const {
    return load_matrices_transposed(address_ + unit_of_input(input - place_.input_begin + step_input_) * 16);
  }

  // Where this lane's row of the operand for entries in `column` lies; zeros where another panel has it.
  __device__ uint32_t entry(int column, bool& inside) const {
    const int local = column - place_.input_begin;
    inside = local >= 0 && column < args_.columns && column < place_.block_end * kBlockInputs;
    return address_ + (inside ? unit_of_input(local) : zero_unit_) * 16;
  }

  __device__ uint4 entries_operand(uint32_t entry) const { return load_matrices_transposed(entry); }

 private:
  const GemmArgs& args_;
  const Place place_;
  char* shared_;
  uint32_t address_;
  int zero_unit_, step_input_;
};

}  // namespace orth
