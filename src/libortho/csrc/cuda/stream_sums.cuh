// A warp's part of the streams of one tile.
//
// Several rows of x: a slot of a slice, one entry for each of 16 output rows, is a diagonal operand;
// its product with the 16 rows of transposed x that the entries' columns name adds one entry to each
// output row. Up to 4 rows of x: a lane gathers for one output row on the plain cores.
#pragma once

#include "x_operand.cuh"

namespace orth {

constexpr int kAheadPairs = 4;  // pairs of slots loaded before the tile's base is multiplied
constexpr int kBatchPairs = 8;  // and at a time after it

template <typename Type, int kOctets, bool kGather, bool kSharedTiles>
class StreamSums {
 public:
  using X = std::conditional_t<kGather, XRows<Type>, XPlanes<Type, kOctets>>;

  // Pairs of slots in flight; lane l holds entry l of each pair.
  template <int kPairs>
  struct Batch {
    int column[kPairs];
    uint16_t value[kPairs];
  };

  using Ahead = Batch<kAheadPairs>;

  // alpha [streams, M] and bounds [streams, rounds, places, 3] lie in shared memory: the slots at which
  // the slices of every tile that this thread block will take begin and end.
  __device__ StreamSums(const GemmArgs& args, const Place& place, const X& x, float* alpha, int* bounds)
      : args_(args), place_(place), x_(x), alpha_(alpha), bounds_(bounds) {}

  // The thread block fetches alpha and bounds; true of `open` only after the next __syncthreads.
  __device__ void load(int tile_begin, int tile_step, int rounds) {
    rounds_ = rounds;
    const int places = kSharedTiles ? 1 : place_.warps;
    for (int s = 0; s < args_.stream_count; ++s) {
      for (int m = threadIdx.x; m < args_.batch; m += blockDim.x) {
        alpha_[s * args_.batch + m] = load_in_order(args_.streams[s].alpha + m);
      }
    }
    open_ = 0;
    if (args_.stream_count == 0) return;
    __syncthreads();
    for (int s = 0; s < args_.stream_count; ++s) {
      bool any = false;
      for (int m = place_.lane; m < args_.batch; m += 32) any = any || alpha_[s * args_.batch + m] != 0.0f;
      if (__any_sync(0xffffffffu, any)) open_ |= 1u << s;
    }
    if (open_ == 0) return;
    const int slices = (args_.rows + kSliceRows - 1) / kSliceRows;
    // tile_begin is the warp's own where warps have tiles of their own.
    const int stride = kSharedTiles ? static_cast<int>(blockDim.x) : 32;
    const int first = kSharedTiles ? static_cast<int>(threadIdx.x) : place_.lane;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      for (int i = first; i < rounds * 3; i += stride) {
        const int tile = tile_begin + i / 3 * tile_step, slice = 2 * tile + i % 3;
        if (tile < args_.tile_count) {
          bounds_[(s * rounds + i / 3) * places * 3 + (kSharedTiles ? 0 : place_.warp * 3) + i % 3] =
              __ldg(args_.streams[s].slice_ptr + (slice < slices ? slice : slices));
        }
      }
    }
  }

  __device__ bool any_open() const { return open_ != 0; }

  // Before the tile's base: asks for the whole share, and loads its first pairs.
  __device__ void begin_tile(int round, Ahead& ahead) const {
    bool first = true;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      for (int half = 0; half < 2; ++half) {
        const Share part = share(s, round, half);
        if (kSharedTiles && half != place_.warp % 2) continue;
        int line = part.begin;
        if (kSharedTiles && first) {
          load(args_.streams[s], part.begin * kSliceRows, part.end * kSliceRows, ahead);
          line += 2 * kAheadPairs;
        }
        for (line += place_.lane * 4; line < part.end; line += 128) {  // four slots are 128 bytes
          prefetch_l2(args_.streams[s].columns + static_cast<int64_t>(line) * kSliceRows);
          prefetch_l2(args_.streams[s].values + static_cast<int64_t>(line) * kSliceRows);
        }
      }
      first = false;
    }
  }

  // out[m * 32 + row] += alpha[m] * (this warp's share of the tile's rows), where alpha is not 0.
  __device__ void add(int round, const Ahead& ahead, float* out) const {
    bool first = true;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      for (int half = 0; half < 2; ++half) {
        if (kSharedTiles && half != place_.warp % 2) continue;
        const Share part = share(s, round, half);
        if (part.begin < part.end) {
          sum(s, part, kSharedTiles && first, ahead, out + half * kSliceRows);
        }
        __syncwarp();
      }
      first = false;
    }
  }

 private:
  // Slots [begin, end) of one slice.
  struct Share {
    int begin, end;
  };

  __device__ Share share(int s, int round, int half) const {
    const int places = kSharedTiles ? 1 : place_.warps;
    const int* bounds =
        bounds_ + ((s * rounds_ + round) * places + (kSharedTiles ? 0 : place_.warp)) * 3 + half;
    const int first = bounds[0], last = bounds[1];
    if (!kSharedTiles) return {first, last};
    // Rows of x as they lie serve every column, so that panels share the slots too.
    const int workers = place_.warps / 2 * (kGather ? args_.panels : 1);
    const int worker = place_.warp / 2 + (kGather ? place_.panel * (place_.warps / 2) : 0);
    const int pairs = (last - first + 1) / 2;
    const int end = first + 2 * part_begin(pairs, worker + 1, workers);
    return {first + 2 * part_begin(pairs, worker, workers), end < last ? end : last};
  }

  template <int kPairs>
  __device__ void load(const StreamView& stream, int entry, int end, Batch<kPairs>& batch) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int at = entry + 32 * i + place_.lane;
      batch.column[i] = args_.columns;
      batch.value[i] = 0;
      if (at < end) {
        batch.column[i] = __ldg(stream.columns + at);
        batch.value[i] = __ldg(stream.values + at);
      }
    }
  }

  static constexpr int kSums = kGather ? kGatherRows : 4 * kOctets;

  __device__ void sum(int s, Share part, bool use_ahead, const Ahead& ahead, float* out) const {
    float dots[kSums] = {};
    int entry = part.begin * kSliceRows;
    const int end = part.end * kSliceRows;
    if (use_ahead) {
      consume(ahead, entry, end, dots);
      entry += 32 * kAheadPairs;
    }
    for (; entry < end; entry += 32 * kBatchPairs) {
      Batch<kBatchPairs> batch;
      load(args_.streams[s], entry, end, batch);
      consume(batch, entry, end, dots);
    }
    const float* alpha = alpha_ + s * args_.batch;
    if constexpr (kGather) {
#pragma unroll
      for (int m = 0; m < kGatherRows; ++m) {
        dots[m] += __shfl_xor_sync(0xffffffffu, dots[m], 16);
        if (m < args_.batch && place_.lane < kSliceRows && alpha[m] != 0.0f) {
          float& y = out[m * 32 + place_.lane];
          y = fmaf(alpha[m], dots[m], y);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int m = i / 4 * 8 + place_.quarter * 2 + i % 2, row = place_.row4 + i % 4 / 2 * 8;
        if (m < args_.batch && alpha[m] != 0.0f) {
          float& y = out[m * 32 + row];
          y = fmaf(alpha[m], dots[i], y);
        }
      }
    }
  }

  template <int kPairs>
  __device__ void consume(const Batch<kPairs>& batch, int entry, int end, float (&dots)[kSums]) const {
    if constexpr (kGather) {
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float value = Half::to_float(batch.value[i]);
        const uint32_t entry = x_.entry(batch.column[i]);
#pragma unroll
        for (int m = 0; m < kGatherRows; ++m) {
          if (m < args_.batch) dots[m] = fmaf(value, x_.item(entry, m), dots[m]);
        }
      }
    } else {
      // Where the lane's two values of a slot stand in the diagonal operand: low or high half.
      const bool diagonal = place_.row4 / 2 == place_.quarter;
      const uint32_t upper = !diagonal ? 0x4444u : place_.row4 % 2 == 0 ? 0x4410u : 0x1044u;
      const uint32_t lower = !diagonal ? 0x4444u : place_.row4 % 2 == 0 ? 0x4432u : 0x3244u;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        if (entry + 32 * i >= end) break;
        bool inside;
        const uint32_t x_row = x_.entry(batch.column[i], inside);
        if (args_.panels > 1 && !__any_sync(0xffffffffu, inside)) continue;
        uint32_t packed = batch.value[i];
        if (Type::kIsBFloat) {
          // An fp16 value is the exact sum of two bf16 ones.
          const float whole = Half::to_float(batch.value[i]);
          const uint16_t high = BFloat::from_float(whole);
          packed = high | static_cast<uint32_t>(BFloat::from_float(whole - BFloat::to_float(high))) << 16;
        }
        uint32_t v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = __shfl_sync(0xffffffffu, packed, place_.row4 + 8 * j);
#pragma unroll
        for (int octet = 0; octet < kOctets; ++octet) {
          const uint4 b = x_.entries_operand(x_row, octet);
          float c[4] = {dots[4 * octet], dots[4 * octet + 1], dots[4 * octet + 2], dots[4 * octet + 3]};
          multiply(c, v[0], v[1], upper, b.x, b.y);
          multiply(c, v[2], v[3], upper, b.z, b.w);
          if (Type::kIsBFloat) {
            multiply(c, v[0], v[1], lower, b.x, b.y);
            multiply(c, v[2], v[3], lower, b.z, b.w);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) dots[4 * octet + j] = c[j];
        }
      }
    }
  }

  __device__ static void multiply(float (&c)[4], uint32_t first, uint32_t second, uint32_t selector,
                                  uint32_t b0, uint32_t b1) {
    Type::mma(c, __byte_perm(first, 0, selector), 0, 0, __byte_perm(second, 0, selector), b0, b1);
  }

  const GemmArgs& args_;
  const Place place_;
  const X x_;
  float* alpha_;
  int* bounds_;
  int rounds_ = 0;
  uint32_t open_ = 0;
};

}  // namespace orth
