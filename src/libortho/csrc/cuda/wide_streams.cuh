// Streams of a warp's tile, walked along the inputs with the base.
//
// A lane stands for one output row, tile_row(lane / 16, lane % 16), and keeps the slot that it has come
// to: the columns of a row ascend. The lanes' next entries inside a block are two diagonal operands;
// their products with the 32 rows of transposed x that the columns name add one entry to each row.
#pragma once

#include "warpgroup.cuh"
#include "wide_alpha.cuh"

namespace orth {

template <typename Type, int kOctets>
class WideStreams {
 public:
  // In shared memory: alpha [streams, M], the slots come to [streams, warps, 32] and the slots at
  // which the two slices end [streams, warps, 2].
  __device__ WideStreams(const GemmArgs& args, const Lane& place, char* shared)
      : args_(args), place_(place), alpha_(reinterpret_cast<float*>(shared)),
        cursors_(reinterpret_cast<int*>(shared) + kMostStreams * args.batch),
        ends_(cursors_ + kMostStreams * place.warps * 32) {
    row_ = tile_row(place.lane / 16, place.lane % 16);
    mask_ = place.row4 / 2 != place.quarter ? 0u : place.row4 % 2 == 0 ? 0xffffu : 0xffff0000u;
  }

  __device__ float* alpha() const { return alpha_; }
  __device__ bool any_open() const { return open_ != 0; }

  // After a __syncthreads: which streams are open, and where this warp begins in them; `input` is its
  // first. All warps agree on what is open.
  __device__ void open(int tile, int input) {
    open_ = open_streams(args_, alpha_, place_.lane);
    const int slices = (args_.rows + kSliceRows - 1) / kSliceRows, slice = 2 * tile + row_ / kSliceRows;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      const StreamView& stream = args_.streams[s];
      const int begin = __ldg(stream.slice_ptr + min(slice, slices));
      const int end = __ldg(stream.slice_ptr + min(slice + 1, slices));
      cursor(s) = input == 0 ? begin : first_slot(stream, begin, end, input);
      if (row_ % kSliceRows == 0) ends_[(s * place_.warps + place_.warp) * 2 + row_ / kSliceRows] = end;
      prefetch(stream, cursor(s), end);
    }
    __syncwarp();
  }

  // total += the streams' entries in block `block`, whose transposed x lies at `planes`.
  __device__ void add(int block, uint32_t planes, Sums<kOctets>& total) const {
    for (int s = 0; s < args_.stream_count; ++s) {
      if (open_ >> s & 1) add(s, block * kBlockInputs, planes, total);
    }
  }

 private:
  struct Entry {
    int column;
    uint32_t value;
  };

  __device__ int& cursor(int s) const { return cursors_[(s * place_.warps + place_.warp) * 32 + place_.lane]; }

  __device__ int column(const StreamView& stream, int slot) const {
    return __ldg(stream.columns + static_cast<int64_t>(slot) * kSliceRows + row_ % kSliceRows);
  }

  // The first slot in [begin, end) whose column is not below `input`, or end. The columns are spread
  // about evenly, so it lies near its share of the slots.
  __device__ int first_slot(const StreamView& stream, int begin, int end, int input) const {
    const int middle = begin + static_cast<int>(static_cast<int64_t>(end - begin) * input / args_.columns);
    int probe = middle - 8;
    for (int tries = 0; begin < end; ++tries) {
      probe = tries == 0 ? middle - 8 : tries == 1 ? middle + 8 : (begin + end) / 2;
      probe = probe < begin ? begin : min(probe, end - 1);
      if (column(stream, probe) < input) {
        begin = probe + 1;
      } else {
        end = probe;
      }
    }
    return begin;
  }

  // Asks for the slots of this row's slice; a line holds four, and 16 lanes share a slice.
  __device__ void prefetch(const StreamView& stream, int begin, int end) const {
    for (int slot = begin + row_ % kSliceRows * 4; slot < end; slot += 4 * kSliceRows) {
      prefetch_l2(stream.columns + static_cast<int64_t>(slot) * kSliceRows);
      prefetch_l2(stream.values + static_cast<int64_t>(slot) * kSliceRows);
    }
  }

  // A place past the end of the slice reads as a pad.
  __device__ Entry load(const StreamView& stream, int slot, int end) const {
    Entry entry{args_.columns, 0};
    if (slot < end) {
      entry.column = column(stream, slot);
      entry.value = __ldg(stream.values + static_cast<int64_t>(slot) * kSliceRows + row_ % kSliceRows);
    }
    return entry;
  }

  __device__ void add(int s, int first, uint32_t planes, Sums<kOctets>& total) const {
    const StreamView& stream = args_.streams[s];
    const int limit = min(first + kBlockInputs, args_.columns);
    const int end = ends_[(s * place_.warps + place_.warp) * 2 + row_ / kSliceRows];
    int slot = cursor(s);
    Entry entry = load(stream, slot, end);
    Sums<kOctets> sum = {};
    bool touched = false;
    while (true) {
      const bool inside = entry.column < limit;
      if (!__any_sync(0xffffffffu, inside)) break;
      touched = true;
      const Entry next = load(stream, slot + 1, end);
      multiply(planes + (inside ? product_unit(entry.column - first) : kBlockInputs) * 16, inside ? entry.value : 0, sum);
      if (inside) {
        entry = next;
        ++slot;
      }
    }
    if (!touched) return;
    cursor(s) = slot;
    const float* alpha = alpha_ + s * args_.batch;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int m = octet * 8 + place_.quarter * 2 + j;
        const float a = m < args_.batch ? alpha[m] : 0.0f;
        if (a != 0.0f) {
#pragma unroll
          for (int i = j; i < 8; i += 2) {
            total[octet][i / 4][i % 4] = fmaf(a, sum[octet][i / 4][i % 4], total[octet][i / 4][i % 4]);
          }
        }
      }
    }
  }

  // sum += each lane's value times the row of x at `x_row`.
  __device__ void multiply(uint32_t x_row, uint32_t value, Sums<kOctets>& sum) const {
    uint32_t high = value, low = 0;
    if (Type::kIsBFloat) split_halves(value, high, low);
    const uint32_t both = Type::kIsBFloat ? high | low << 16 : high | high << 16;
    uint32_t a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t got = __shfl_sync(0xffffffffu, both, 8 * i + place_.row4);
      a[i] = __byte_perm(got, got, 0x1010) & mask_;
      if (Type::kIsBFloat) b[i] = __byte_perm(got, got, 0x3232) & mask_;
    }
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const uint4 x = load_matrices_transposed(x_row + octet * kPlaneBytes);
      Type::mma(sum[octet][0], a[0], 0, 0, a[1], x.x, x.y);
      Type::mma(sum[octet][1], a[2], 0, 0, a[3], x.z, x.w);
      if (Type::kIsBFloat) {
        Type::mma(sum[octet][0], b[0], 0, 0, b[1], x.x, x.y);
        Type::mma(sum[octet][1], b[2], 0, 0, b[3], x.z, x.w);
      }
    }
  }

  const GemmArgs& args_;
  const Lane place_;
  float* alpha_;
  int* cursors_;
  int* ends_;
  int row_;
  uint32_t mask_;
  uint32_t open_ = 0;
};

}  // namespace orth
