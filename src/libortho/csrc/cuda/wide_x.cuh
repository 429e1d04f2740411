// x of a chunk in shared memory: copied as it lies by the warps that share a part of the inputs, and
// transposed by them into planes (fragments.h), an octet of the batch each.
#pragma once

#include "gemm_args.cuh"
#include "transpose.cuh"

namespace orth {

// As it lies, row m of a chunk is 16 units of 16 bytes; in every other octet neighbouring steps change
// places, so that lanes that transpose two octets meet no bank twice.
template <int kOctets, bool kWhole>
class WideX {
 public:
  // `thread` of `warps` warps, 1, 2, 4 or 8.
  __device__ WideX(const GemmArgs& args, int thread, int warps)
      : args_(args), warps_(warps), row_(thread / kEights), eight_(thread % kEights * 8), octet_(thread / 4 % kOctets),
        step_(thread / (4 * kOctets)), from_(args.x + static_cast<int64_t>(row_) * args.columns + eight_),
        to_offset_(row_ * kRowBytes + (eight_ * 2 ^ (row_ & 8) * 8)), raw_offset_(octet_ * 8 * kRowBytes + thread % 4 * 16),
        plane_offset_(octet_ * kPlaneBytes + thread % 4 * 32) {}

  // Starts the copy of 128 inputs from `first` on to shared memory at `raw`, a multiple of 128.
  __device__ void copy(int first, uint32_t raw) const {
    const uint16_t* from = from_ + first;
    const uint32_t to = raw + to_offset_;
    if (warps_ == 8) {
      copy_rows<16>(first, from, to);
    } else if (warps_ == 4) {
      copy_rows<8>(first, from, to);
    } else if (warps_ == 2) {
      copy_rows<4>(first, from, to);
    } else {
      copy_rows<2>(first, from, to);
    }
  }

  // Rows past the batch are whatever lay there: each row of x meets its own column of a product alone.
  __device__ void transpose(uint32_t raw, char* planes) const {
    const int stride = warps_ * 8 / kOctets;
    for (int step = step_; step < kBlockSteps; step += stride) {
      const uint32_t from = raw + raw_offset_ + (step ^ (octet_ & 1)) * (kRowBytes / kBlockSteps);
      transpose_eight([from](int m) { return load16_shared(from + m * kRowBytes); }, [](int k) { return product_unit(k); },
                      planes + plane_offset_ + step * (kStepInputs * 16));
    }
  }

 private:
  static constexpr int kEights = kBlockInputs / 8, kRowBytes = kBlockInputs * 2;

  // This thread's rows, kStride apart.
  template <int kStride>
  __device__ void copy_rows(int first, const uint16_t* from, uint32_t to) const {
    constexpr int kTurns = (8 * kOctets + kStride - 1) / kStride;
    const int64_t stride = static_cast<int64_t>(args_.columns) * kStride;
    const int rows = args_.batch - row_;
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int further = i * kStride;
      // Below 8 a stride keeps row_ % 8 + further % 8 below 8.
      if (further < rows) copy_eight(first, from, (to ^ (further & 8) * 8) + further * kRowBytes);
      from += stride;
    }
  }

  __device__ void copy_eight(int first, const uint16_t* from, uint32_t to) const {
    if constexpr (kWhole) {
      copy16_async(to, from);
    } else {
      const bool inside = first + eight_ < args_.columns;
      copy16_async_or_zeros(to, inside ? from : args_.x, inside);
    }
  }

  const GemmArgs& args_;
  const int warps_;
  const int row_, eight_;   // of what this thread copies: its first row, its inputs
  const int octet_, step_;  // of what it transposes, and the first step
  const uint16_t* from_;
  const int to_offset_, raw_offset_, plane_offset_;
};

}  // namespace orth
