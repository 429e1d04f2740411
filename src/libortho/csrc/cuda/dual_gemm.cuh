// The fused forward for up to 16 rows of x: INT4 base and SELL-16 streams in one launch.
// core/launch_plan.h says which thread block and warp takes what.
#pragma once

#include <type_traits>

#include "products.cuh"
#include "ring.cuh"
#include "stream_sums.cuh"

namespace orth {

// How x stands in shared memory: up to kRows rows as they lie, or transposed, kOctets planes.
template <int kRows>
struct AsRows {
  static constexpr bool kGather = true;
  static constexpr int kOctets = 1;
  template <typename Type>
  using X = XRows<Type, kRows>;
  template <typename Type>
  using StreamSums = RowSums<Type, kRows>;
};

template <int kPlanes>
struct AsPlanes {
  static constexpr bool kGather = false;
  static constexpr int kOctets = kPlanes;
  template <typename Type>
  using X = XPlanes<Type, kPlanes>;
  template <typename Type>
  using StreamSums = PlaneSums<Type, kPlanes>;
};

template <typename Type, typename As, bool kWhole>
class DualGemm {
 public:
  __device__ DualGemm(const GemmArgs& args, char* shared)
      : args_(args),
        place_(args),
        x_(args, place_, shared),
        blocks_(args, place_),
        products_(args, blocks_),
        sums_(reinterpret_cast<float*>(shared + args.x_bytes + place_.warps * args.stages * args.stage_bytes)),
        alpha_(sums_ + (args.rounds > 1 ? 2 : 1) * place_.warps * kSums),
        shares_(args, place_, shared_address(alpha_ + kMostStreams * args.batch), As::kGather),
        ring_(args, place_, blocks_, shared_address(shared) + args.x_bytes) {}

  __device__ __forceinline__ void run() {
    ring_.prefetch();
    wait_for_previous();
    let_next_start();
    const WarpAlpha alpha(args_, place_.lane);
    const auto open = [&] {
      shares_.open(alpha.open(args_));
      if (place_.warp == 0) alpha.put(args_, place_.lane, alpha_);
    };
    if (args_.streams_only) {
      open();
      if (!shares_.any_open()) return;
      load_x(0, [] {});
    } else {
      load_x(0, open);
    }
    __syncthreads();
    ring_.start(shares_);
    for (int round = 0; round < args_.rounds; ++round) {
      const bool here = place_.tile(args_, round) < args_.tile_count;
      Sums<kOctets> total = {};
      for (int pass = 0; pass < args_.passes; ++pass) {
        if (args_.passes > 1 && round + pass > 0) {
          __syncthreads();  // the panel before has been read
          load_x(pass, [] {});
          __syncthreads();
        }
        if (!here) continue;
        if (!args_.streams_only) add_base(Panel(args_, place_, pass), total);
        float* sums = mine(round);
        if (pass == args_.passes - 1) {
          put(total, sums, pass > 0 && shares_.any_open());
        } else if (pass == 0 && shares_.any_open()) {
          put(Sums<kOctets>{}, sums, false);
        }
        if (shares_.any_open()) add_streams(round, pass, sums);
      }
      finish(round);
    }
    if (args_.panels > 1) cluster_barrier();  // others may be reading these sums still
  }

 private:
  static constexpr int kOctets = As::kOctets;
  static constexpr int kSumRows = As::kGather ? kGatherRows : 8 * kOctets;
  static constexpr int kSums = kSumRows * kSumStride;
  static_assert(kSums * 4 == sum_bytes(As::kGather, kOctets), "what the plan gives a warp");
  using X = typename As::template X<Type>;
  using StreamSums = typename As::template StreamSums<Type>;

  template <typename Meanwhile>
  __device__ __forceinline__ void load_x(int pass, const Meanwhile& meanwhile) {
    x_.load(Panel(args_, place_, pass), meanwhile);
  }

  __device__ __forceinline__ void add_base(const Panel& panel, Sums<kOctets>& total) {
    for (int block = panel.begin + place_.k_warp; block < panel.end; block += args_.k_warps) {
      const uint32_t place = ring_.wait();
      products_.add(place, block * kBlockInputs, x_.operands(block), total);
      ring_.next(shares_);
    }
  }

  // This warp's sums of a tile, [m][kSumStride]; in two places, so that one round's can be read while
  // the next one's are made.
  __device__ float* mine(int round) const { return sums_ + (round % 2 * place_.warps + place_.warp) * kSums; }

  // Adding: streams of the passes before lie there, for the rows that open any.
  __device__ __forceinline__ void put(const Sums<kOctets>& total, float* sums, bool adding) const {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = octet * 8 + place_.quarter * 2 + i;
        if (m >= kSumRows) continue;
        const float(&c)[2][4] = total[octet];
        float4 v = make_float4(c[0][i], c[0][2 + i], c[1][i], c[1][2 + i]);
        float4* to = reinterpret_cast<float4*>(sums + m * kSumStride + place_.row4 * 4);
        if (adding && m < args_.batch && opens_row(args_, alpha_, m)) {
          v = make_float4(to->x + v.x, to->y + v.y, to->z + v.z, to->w + v.w);
        }
        *to = v;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void add_streams(int round, int pass, float* sums) {
    for (int s = 0; s < args_.stream_count; ++s) {
      if (!shares_.is_open(s)) continue;
      for (int i = 0; i < shares_.halves(); ++i) {
        const Share share = shares_.share(s, round, i);
        if (share.begin >= share.end) continue;
        StreamSums dots(args_, place_, x_);
        for (int slot = share.begin; slot < share.end; slot += kPieceSlots) {
          const int slots = min(kPieceSlots, share.end - slot);
          dots.add(ring_.wait(), slots);
          ring_.next(shares_);
        }
        dots.put(alpha_ + s * args_.batch, sums + share.half * kSliceRows);
        __syncwarp();
      }
    }
  }

  // The sums of all warps and thread blocks that split a tile's inputs, in their order; the thread
  // blocks of the cluster share the work.
  __device__ __forceinline__ void finish(int round) const {
    if (args_.panels > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
    // Eight lanes take a tile of a row of y, four items each.
    const int jobs = args_.batch * args_.row_warps, end = jobs * (place_.rank + 1) >> args_.cluster_log2;
    const uint32_t mine = shared_address(sums_) + (round % 2 * place_.warps * kSums + place_.lane % 8 * 4) * 4;
    const uint32_t next = args_.row_warps * (kSums * 4);
    for (int job = (jobs * place_.rank >> args_.cluster_log2) + static_cast<int>(threadIdx.x) / 8; job < end; job += blockDim.x / 8) {
      const int m = row_quotient(args_, job), row_warp = job - m * args_.row_warps;
      const uint32_t from = mine + (row_warp * kSums + m * kSumStride) * 4;
      float4 sum = make_float4(0, 0, 0, 0);
      if (args_.panels == 1) {
#pragma unroll 4
        for (int k = 0; k < args_.k_warps; ++k) add(sum, load_floats_shared(from + k * next));
      } else {
        for (int rank = 0; rank < args_.panels; ++rank) {
#pragma unroll 4
          for (int k = 0; k < args_.k_warps; ++k) add(sum, load16_cluster(from + k * next, rank));
        }
      }
      const int tile = place_.tile(args_, round) - place_.row_warp + row_warp;
      store(m, tile * static_cast<int>(kTileRows) + place_.lane % 8 * 4, sum);
    }
  }

  __device__ static void add(float4& sum, const float4& v) {
    sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
  }

  __device__ __forceinline__ void store(int m, int n, const float4& sum) const {
    if (n >= args_.rows || (args_.streams_only && !opens_row(args_, alpha_, m))) return;
    uint16_t* y = args_.y + static_cast<int64_t>(m) * args_.rows + n;
    const float four[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n + i < args_.rows) y[i] = Type::from_float(args_.streams_only ? four[i] + Type::to_float(y[i]) : four[i]);
    }
  }

  const GemmArgs& args_;
  const Place place_;
  X x_;
  const BaseBlocks<kWhole> blocks_;
  const Products<Type, kOctets, kWhole> products_;
  float* sums_;
  float* alpha_;
  StreamShares shares_;
  Ring<kWhole> ring_;
};

}  // namespace orth
