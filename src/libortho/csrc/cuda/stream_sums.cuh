// A warp's part of the streams of one tile.
//
// Several rows of x: a slot of a slice, one entry for each of 16 output rows, is a diagonal operand;
// its product with the 16 rows of transposed x that the entries' columns name adds one entry to each
// output row. Up to 4 rows of x: a lane gathers for one output row on the plain cores.
#pragma once

#include "alpha.cuh"
#include "x_operand.cuh"

namespace orth {

constexpr int kAheadQuads = 2;  // four slots each, loaded while the tile's base is multiplied
constexpr int kBatchQuads = 4;  // and at a time after it
constexpr int kQuadEntries = 4 * kSliceRows;

template <typename Type, bool kGather>
class StreamSums {
 public:
  using X = std::conditional_t<kGather, XRows<Type>, XPlanes<Type>>;

  // Quads of slots in flight, a line each; lane l holds entries 2l and 2l + 1 of each quad.
  template <int kQuads>
  struct Batch {
    uint32_t columns[kQuads];
    uint32_t values[kQuads];
  };

  using Ahead = Batch<kAheadQuads>;

  // alpha [streams, M] and bounds [streams, rounds, places, 3] lie in shared memory: the slots at which
  // the slices of every tile that this thread block will take begin and end.
  __device__ StreamSums(const GemmArgs& args, const Place& place, const X& x, float* alpha, int* bounds)
      : args_(args), place_(place), x_(x), alpha_(alpha), bounds_(bounds) {}

  __device__ float* alpha() const { return alpha_; }

  // After a __syncthreads: which streams are open, and for those the bounds of this place's tiles, which
  // can be read after another. All threads of the thread block agree on what is open.
  __device__ void open(int first_tile, int tile_step, int rounds) {
    rounds_ = rounds;
    open_ = open_streams(args_, alpha_, place_.lane);
    if (open_ == 0) return;
    const int slices = (args_.rows + kSliceRows - 1) / kSliceRows;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      for (int i = threadIdx.x; i < rounds * 3; i += blockDim.x) {
        const int tile = first_tile + i / 3 * tile_step, slice = 2 * tile + i % 3;
        if (tile < args_.tile_count) {
          bounds_[(s * rounds + i / 3) * 3 + i % 3] =
              __ldg(args_.streams[s].slice_ptr + (slice < slices ? slice : slices));
        }
      }
    }
  }

  __device__ bool any_open() const { return open_ != 0; }

  // While the tile's base is multiplied: asks for the whole share, and loads its beginning.
  __device__ void begin_tile(int round, Ahead& ahead) const {
    bool first = true;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      const Share part = share(s, round);
      int line = part.begin;
      if (first) {
        load(args_.streams[s], part.begin * kSliceRows, part.end * kSliceRows, ahead);
        line += 4 * kAheadQuads;
      }
      for (line += place_.lane * 4; line < part.end; line += 128) {  // four slots are 128 bytes
        prefetch_l2(args_.streams[s].columns + static_cast<int64_t>(line) * kSliceRows);
        prefetch_l2(args_.streams[s].values + static_cast<int64_t>(line) * kSliceRows);
      }
      first = false;
    }
  }

  // out[m * 32 + row] += alpha[m] * (this warp's share of the tile's rows), where alpha is not 0.
  __device__ void add(int round, const Ahead& ahead, float* out) const {
    bool first = true;
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!(open_ >> s & 1)) continue;
      const Share part = share(s, round);
      if (part.begin < part.end) sum(s, part, first, ahead, out + place_.warp % 2 * kSliceRows);
      __syncwarp();
      first = false;
    }
  }

 private:
  // Slots [begin, end) of one slice: even warps take a tile's first, odd ones its second.
  struct Share {
    int begin, end;
  };

  __device__ Share share(int s, int round) const {
    const int* bounds = bounds_ + (s * rounds_ + round) * 3 + place_.warp % 2;
    const int first = bounds[0], last = bounds[1];
    // Rows of x as they lie serve every column, so that panels share the slots too.
    const int workers = place_.warps / 2 * (kGather ? args_.panels : 1);
    const int worker = place_.warp / 2 + (kGather ? place_.panel * (place_.warps / 2) : 0);
    const int quads = (last - first + 3) / 4;
    const int end = first + 4 * part_begin(quads, worker + 1, workers);
    return {first + 4 * part_begin(quads, worker, workers), end < last ? end : last};
  }

  template <int kQuads>
  __device__ void load(const StreamView& stream, int entry, int end, Batch<kQuads>& batch) const {
    const uint32_t* columns = reinterpret_cast<const uint32_t*>(stream.columns);
    const uint32_t* values = reinterpret_cast<const uint32_t*>(stream.values);
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int at = entry + kQuadEntries * i + 2 * place_.lane;
      batch.columns[i] = args_.columns * 0x10001u;
      batch.values[i] = 0;
      if (at < end) {
        batch.columns[i] = __ldg(columns + at / 2);
        batch.values[i] = __ldg(values + at / 2);
      }
    }
  }

  static constexpr int kSums = kGather ? 2 * kGatherRows : 4;

  __device__ void sum(int s, Share part, bool use_ahead, const Ahead& ahead, float* out) const {
    float dots[kSums] = {};
    int entry = part.begin * kSliceRows;
    const int end = part.end * kSliceRows;
    Batch<kBatchQuads> batch;  // one is on its way while another is multiplied
    if (use_ahead) {
      load(args_.streams[s], entry + kQuadEntries * kAheadQuads, end, batch);
      consume(ahead, entry, end, dots);
      entry += kQuadEntries * kAheadQuads;
    } else {
      load(args_.streams[s], entry, end, batch);
    }
    for (; entry < end; entry += kQuadEntries * kBatchQuads) {
      Batch<kBatchQuads> next;
      load(args_.streams[s], entry + kQuadEntries * kBatchQuads, end, next);
      consume(batch, entry, end, dots);
      batch = next;
    }
    const float* alpha = alpha_ + s * args_.batch;
    if constexpr (kGather) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int m = i / 2, row = place_.lane * 2 + i % 2;
        dots[i] += __shfl_xor_sync(0xffffffffu, dots[i], 8);
        dots[i] += __shfl_xor_sync(0xffffffffu, dots[i], 16);
        if (m < args_.batch && place_.lane < kSliceRows / 2 && alpha[m] != 0.0f) {
          float& y = out[m * 32 + row];
          y = fmaf(alpha[m], dots[i], y);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int m = place_.quarter * 2 + i % 2, row = place_.row4 + i / 2 * 8;
        if (m < args_.batch && alpha[m] != 0.0f) {
          float& y = out[m * 32 + row];
          y = fmaf(alpha[m], dots[i], y);
        }
      }
    }
  }

  template <int kQuads>
  __device__ void consume(const Batch<kQuads>& batch, int entry, int end, float (&dots)[kSums]) const {
    if constexpr (kGather) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float value = Half::to_float(static_cast<uint16_t>(batch.values[i] >> (16 * half)));
          const uint32_t x_entry = x_.entry(batch.columns[i] >> (16 * half) & 0xffff);
#pragma unroll
          for (int m = 0; m < kGatherRows; ++m) {
            if (m < args_.batch) dots[2 * m + half] = fmaf(value, x_.item(x_entry, m), dots[2 * m + half]);
          }
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (entry + kQuadEntries * i >= end) break;
        multiply_quad(batch.columns[i], batch.values[i], dots);
      }
    }
  }

  // Four slots as four diagonal operands, two to a read of x.
  __device__ void multiply_quad(uint32_t columns, uint32_t values, float (&dots)[kSums]) const {
    uint32_t high = values, low = 0;
    if (Type::kIsBFloat) split_halves(values, high, low);
    // A slot's operand holds value r at row r, input r: two of this lane's items, if it is one of the
    // eight on the diagonal, in the half that the value has in its pair.
    const uint32_t mask = place_.row4 / 2 != place_.quarter ? 0u : place_.row4 % 2 == 0 ? 0xffffu : 0xffff0000u;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint32_t both = __shfl_sync(0xffffffffu, columns, 16 * pair + place_.lane / 2);
      bool inside;
      const uint32_t x_row = x_.entry(place_.lane % 2 == 0 ? both & 0xffff : both >> 16, inside);
      if (args_.panels > 1 && !__any_sync(0xffffffffu, inside)) continue;
      uint32_t a[4], b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int source = 16 * pair + 4 * j + place_.row4 / 2;
        a[j] = __shfl_sync(0xffffffffu, high, source) & mask;
        if (Type::kIsBFloat) b[j] = __shfl_sync(0xffffffffu, low, source) & mask;
      }
      const uint4 x = x_.entries_operand(x_row);
      Type::mma(dots, a[0], 0, 0, a[1], x.x, x.y);
      Type::mma(dots, a[2], 0, 0, a[3], x.z, x.w);
      if (Type::kIsBFloat) {
        Type::mma(dots, b[0], 0, 0, b[1], x.x, x.y);
        Type::mma(dots, b[2], 0, 0, b[3], x.z, x.w);
      }
    }
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
