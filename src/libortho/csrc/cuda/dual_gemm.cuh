// The fused forward for few rows of x: INT4 base and SELL-16 streams in one launch. The warps
// of a thread block share a tile and split its inputs between them.
#pragma once

#include <type_traits>

#include "base_ring.cuh"
#include "products.cuh"
#include "stream_sums.cuh"

namespace orth {

template <typename Type, bool kGather, bool kWhole>
class DualGemm {
 public:
  __device__ DualGemm(const GemmArgs& args, char* shared)
      : args_(args),
        place_(args),
        x_(args, place_, shared),
        blocks_(args, place_),
        products_(args, blocks_),
        ring_(args, place_, blocks_, shared_address(shared) + args.x_bytes),
        sums_(reinterpret_cast<float*>(shared + args.x_bytes + place_.warps * kStages * args.stage_bytes)),
        streams_(args, place_, x_, sums_ + place_.warps * kSumRows * 32,
                 reinterpret_cast<int*>(sums_ + place_.warps * kSumRows * 32 + kMostStreams * args.batch)) {}

  __device__ void run() {
    for (int i = 0; i < kStages; ++i) ring_.fetch();
    wait_for_previous();
    let_next_start();
    const auto alpha = read_alpha(args_);
    if (!args_.streams_only) x_.load();
    put_alpha(args_, alpha, streams_.alpha());
    __syncthreads();
    if (args_.stream_count > 0) streams_.open(ring_.first_tile(), ring_.tile_step(), args_.rounds);
    if (args_.streams_only) {
      if (!streams_.any_open()) return;
      x_.load();
      __syncthreads();
    }
    typename Ring::Cursor now = ring_.begin();
    int round = 0;
    for (int tile = ring_.first_tile(); tile < args_.tile_count; tile += ring_.tile_step(), ++round) {
      typename Streams::Ahead pairs{};
      ring_.begin_tile(now);
      Sums<1> total = {};
      for (int i = 0; i < ring_.per_tile(); ++i) {
        ring_.wait();
        if (now.block < place_.block_end && !args_.streams_only) {
          const int first = now.block * kBlockInputs;
          products_.add(now.slot, first, [&](int step, int) { return x_.operand(first + step * kStepInputs); }, total);
        }
        ring_.fetch();
        ring_.advance(now);
        if (i == 0 && streams_.any_open()) {
          if (round == 0) __syncthreads();  // the bounds
          streams_.begin_tile(round, pairs);
        }
      }
      finish(tile, round, total, pairs);
    }
  }

 private:
  static constexpr int kSumRows = kGather ? kGatherRows : 8;
  static constexpr int kStages = stage_count(kGather);
  using Streams = StreamSums<Type, kGather>;
  using Ring = BaseRing<kStages, kWhole>;

  // This warp's sums of a tile, [m][32].
  __device__ void put(const Sums<1>& total, float* out) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int m = place_.quarter * 2 + i;
      if (m < kSumRows) {
        *reinterpret_cast<float4*>(out + m * 32 + place_.row4 * 4) =
            make_float4(total[0][0][i], total[0][0][2 + i], total[0][1][i], total[0][1][2 + i]);
      }
    }
    __syncwarp();
  }

  __device__ void store(int m, int tile, int row, float value) const {
    const int n = tile * 32 + row;
    if (n >= args_.rows) return;
    uint16_t& y = args_.y[static_cast<int64_t>(m) * args_.rows + n];
    if (args_.streams_only) {
      if (!opens_row(args_, streams_.alpha(), m)) return;
      value += Type::to_float(y);
    }
    y = Type::from_float(value);
  }

  __device__ float* part(int panel, int tile) const {
    return args_.parts + (static_cast<int64_t>(panel) * args_.tile_count + tile) * args_.batch * 32;
  }

  // The panels' parts in their order; a thread takes four rows at a time.
  __device__ void sum_parts(int tile) const {
    constexpr int kAtOnce = 4;
    const int64_t next = static_cast<int64_t>(args_.tile_count) * args_.batch * 8;
    const float4* from = reinterpret_cast<const float4*>(part(0, tile));
    const int count = args_.batch * 8, step = static_cast<int>(blockDim.x);
    for (int i = threadIdx.x; i < count; i += kAtOnce * step) {
      float4 sum[kAtOnce] = {};
#pragma unroll 4
      for (int p = 0; p < args_.panels; ++p) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          if (i + j * step < count) {
            const float4 v = __ldcg(from + p * next + i + j * step);
            sum[j] = make_float4(sum[j].x + v.x, sum[j].y + v.y, sum[j].z + v.z, sum[j].w + v.w);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = i + j * step;
        if (at < count) {
          store(at / 8, tile, at % 8 * 4, sum[j].x);
          store(at / 8, tile, at % 8 * 4 + 1, sum[j].y);
          store(at / 8, tile, at % 8 * 4 + 2, sum[j].z);
          store(at / 8, tile, at % 8 * 4 + 3, sum[j].w);
        }
      }
    }
  }

  __device__ void finish(int tile, int round, const Sums<1>& total, const typename Streams::Ahead& pairs) {
    if (round > 0) __syncthreads();  // the sums of the tile before have been read
    float* mine = sums_ + place_.warp * kSumRows * 32;
    put(total, mine);
    if (streams_.any_open()) streams_.add(round, pairs, mine);
    __syncthreads();
    for (int i = threadIdx.x; i < args_.batch * 32; i += blockDim.x) {
      float sum = 0.0f;
#pragma unroll 8
      for (int w = 0; w < place_.warps; ++w) sum += sums_[w * kSumRows * 32 + i];
      if (args_.panels == 1) {
        store(i / 32, tile, i % 32, sum);
      } else {
        __stcg(part(place_.panel, tile) + i, sum);
      }
    }
    if (args_.panels == 1) return;
    __threadfence();
    __syncthreads();
    __shared__ bool last;
    if (threadIdx.x == 0) last = atomicAdd(args_.counters + tile, 1) == args_.panels - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    sum_parts(tile);
    if (threadIdx.x == 0) args_.counters[tile] = 0;
  }

  const GemmArgs& args_;
  const Place place_;
  const typename Streams::X x_;
  const BaseBlocks<kWhole> blocks_;
  const Products<Type, 1, kWhole> products_;
  Ring ring_;
  float* sums_;
  Streams streams_;
};

}  // namespace orth
