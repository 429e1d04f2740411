// The fused forward: INT4 base and SELL-16 streams, up to 64 rows of x, one launch.
//
// Codes go into tensor-core operands unscaled: their products with x are exact, and a group's float
// sum is multiplied by its scale.
#pragma once

#include <type_traits>

#include "base_ring.cuh"
#include "stream_sums.cuh"

namespace orth {

template <typename Type, int kOctets, bool kGather, bool kSharedTiles, bool kWhole>
class DualGemm {
 public:
  __device__ DualGemm(const GemmArgs& args, char* shared)
      : args_(args),
        place_(args),
        x_(args, place_, shared),
        ring_(args, place_, shared_address(shared) + args.x_bytes),
        sums_(reinterpret_cast<float*>(shared + args.x_bytes + place_.warps * kStages * args.stage_bytes)),
        streams_(args, place_, x_, sums_ + (kSharedTiles ? place_.warps * kSumRows * 32 : 0),
                 reinterpret_cast<int*>(sums_ + (kSharedTiles ? place_.warps * kSumRows * 32 : 0) +
                                        kMostStreams * args.batch)) {}

  __device__ void run() {
    for (int i = 0; i < kStages; ++i) ring_.fetch();
    wait_for_previous();
    let_next_start();
    const auto alpha = streams_.read_alpha();
    if (!args_.streams_only) x_.load();
    streams_.put_alpha(alpha);
    __syncthreads();
    if (args_.stream_count > 0) streams_.open(ring_.first_tile(), ring_.tile_step(), args_.rounds);
    if (args_.streams_only) {
      if (!streams_.any_open()) return;
      x_.load();
      __syncthreads();
    }
    Cursor now = ring_.begin();
    int round = 0;
    for (int tile = ring_.first_tile(); tile < args_.tile_count; tile += ring_.tile_step(), ++round) {
      typename Streams::Ahead pairs{};
      if (streams_.any_open()) streams_.begin_tile(round, pairs);
      ring_.begin_tile(now);
      float total[kOctets][2][4] = {};
      for (int i = 0; i < ring_.per_tile(); ++i) {
        ring_.wait();
        if (now.block < place_.block_end && !args_.streams_only) multiply(now, total);
        ring_.fetch();
        ring_.advance(now);
      }
      if (kSharedTiles) {
        finish_shared(tile, round, total, pairs);
      } else {
        finish_own(tile, round, total, pairs);
      }
    }
  }

 private:
  static constexpr int kSumRows = kGather ? kGatherRows : 8 * kOctets;
  using Streams = StreamSums<Type, kOctets, kGather, kSharedTiles>;
  static constexpr int kStages = stage_count(kGather, kSharedTiles);
  using Ring = BaseRing<kStages, kSharedTiles, kWhole>;
  using Cursor = typename Ring::Cursor;
  using Sums = float[kOctets][2][4];  // [octet][product block][product operand]

  // total += one block of 128 inputs.
  __device__ void multiply(const Cursor& now, Sums& total) const {
    const int first = now.block * kBlockInputs;
    if constexpr (kWhole) {
      Sums sum = {};
#pragma unroll
      for (int step = 0; step < kBlockSteps; ++step) multiply_step(now, step, first, sum);
      scale(now, 0, sum, total);
    } else {
      const int group_steps = args_.group_size / kStepInputs;
      Sums sum = {};
#pragma unroll 1
      for (int step = 0; step < kBlockSteps && first + step * kStepInputs < args_.columns; ++step) {
        multiply_step(now, step, first, sum);
        if ((step + 1) % group_steps == 0) scale(now, step / group_steps, sum, total);
      }
    }
  }

  __device__ void multiply_step(const Cursor& now, int step, int first, Sums& sum) const {
    const uint4 words = ring_.words(now, step);
    uint32_t a[4][4];
    Type::decode(words.x, a[0]);
    Type::decode(words.y, a[1]);
    Type::decode(words.z, a[2]);
    Type::decode(words.w, a[3]);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const uint4 b = x_.operand(first + step * kStepInputs, octet);
      Type::mma(sum[octet][0], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
      Type::mma(sum[octet][1], a[2][0], a[3][0], a[2][1], a[3][1], b.x, b.y);
      Type::mma(sum[octet][0], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
      Type::mma(sum[octet][1], a[2][2], a[3][2], a[2][3], a[3][3], b.z, b.w);
    }
  }

  // total += scale * sum of a group; sum = 0.
  __device__ void scale(const Cursor& now, int group, Sums& sum, Sums& total) const {
    float s[4];
    ring_.template scales<Type>(now, group, s);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& c = sum[octet][i / 4][i % 4];
        total[octet][i / 4][i % 4] = fmaf(s[i / 2], c, total[octet][i / 4][i % 4]);
        c = 0.0f;
      }
    }
  }

  // This warp's sums of a tile, [m][32]; rows of m from `count` on are left out.
  __device__ void put(const Sums& total, float* out, int count) const {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = octet * 8 + place_.quarter * 2 + i;
        if (m < count) {
          *reinterpret_cast<float4*>(out + m * 32 + place_.row4 * 4) = make_float4(
              total[octet][0][i], total[octet][0][2 + i], total[octet][1][i], total[octet][1][2 + i]);
        }
      }
    }
    __syncwarp();
  }

  __device__ void store(int m, int tile, int row, float value) const {
    const int n = tile * 32 + row;
    if (n >= args_.rows) return;
    uint16_t& y = args_.y[static_cast<int64_t>(m) * args_.rows + n];
    if (args_.streams_only) {
      if (!streams_.opens(m)) return;
      value += Type::to_float(y);
    }
    y = Type::from_float(value);
  }

  __device__ float* part(int panel, int tile) const {
    return args_.parts + (static_cast<int64_t>(panel) * args_.tile_count + tile) * args_.batch * 32;
  }

  // The panels' parts in their order; thread `first` of `step` takes four rows at a time.
  __device__ void sum_parts(int tile, int first, int step) const {
    constexpr int kAtOnce = 4;
    const int64_t next = static_cast<int64_t>(args_.tile_count) * args_.batch * 8;
    const float4* from = reinterpret_cast<const float4*>(part(0, tile));
    const int count = args_.batch * 8;
    for (int i = first; i < count; i += kAtOnce * step) {
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

  __device__ void finish_shared(int tile, int round, const Sums& total, const typename Streams::Ahead& pairs) {
    if (round > 0) __syncthreads();  // the sums of the tile before have been read
    float* mine = sums_ + place_.warp * kSumRows * 32;
    put(total, mine, kSumRows);
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
    sum_parts(tile, threadIdx.x, blockDim.x);
    if (threadIdx.x == 0) args_.counters[tile] = 0;
  }

  __device__ void finish_own(int tile, int round, const Sums& total, const typename Streams::Ahead& pairs) {
    float* mine = part(place_.panel, tile);
    put(total, mine, args_.batch);
    if (streams_.any_open()) streams_.add(round, pairs, mine);
    __threadfence();
    __syncwarp();
    int before = 0;
    if (place_.lane == 0) before = atomicAdd(args_.counters + tile, 1);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != args_.panels - 1) return;
    __threadfence();
    sum_parts(tile, place_.lane, 32);
    if (place_.lane == 0) args_.counters[tile] = 0;
  }

  const GemmArgs& args_;
  const Place place_;
  const typename Streams::X x_;
  Ring ring_;
  float* sums_;
  Streams streams_;
};

}  // namespace orth
