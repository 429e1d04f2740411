// The fused forward for many rows of x: INT4 base and SELL-16 streams in one launch. core/wide_plan.h
// says which thread block and warp takes what.
//
// x comes to shared memory as it lies, a chunk ahead, and is transposed there; one barrier a chunk.
#pragma once

#include "wide_streams.cuh"
#include "x_operand.cuh"

namespace orth {

template <typename Type, int kOctets, bool kWhole>
class WideGemm {
 public:
  __device__ WideGemm(const GemmArgs& args, char* shared)
      : args_(args), blocks_(args, place_), products_(args, blocks_), shared_(shared), rank_(blockIdx.x),
        ring_(shared_address(shared) + place_.warp * args.stages * args.stage_bytes),
        raw_(args.stages * place_.warps * args.stage_bytes), planes_(raw_ + args.stages * args.k_warps * kRawBytes),
        streams_(args, place_, shared + planes_ + 2 * args.k_warps * kOctets * kPlaneBytes) {
    const int row_warp = place_.warp % args.row_warps;
    k_warp_ = place_.warp / args.row_warps;
    group_lane_ = row_warp * 32 + place_.lane;
    tile_ = blockIdx.y * args.row_warps + row_warp;
    const int begin = part_begin(blocks_.count(), rank_, args.panels);
    const int count = part_begin(blocks_.count(), rank_ + 1, args.panels) - begin;
    block_ = begin + part_begin(count, k_warp_, args.k_warps);
    chunks_ = begin + part_begin(count, k_warp_ + 1, args.k_warps) - block_;
    most_chunks_ = (count + args.k_warps - 1) / args.k_warps;
  }

  __device__ void run() {
    const int ahead = args_.stages - 1;
    for (int chunk = 0; chunk < ahead; ++chunk) copy_base(chunk);
    wait_for_previous();
    let_next_start();
    const AlphaRead alpha = read_alpha(args_);
    copy_x(0);
    for (int chunk = 0; chunk < ahead; ++chunk) {
      copy_x(chunk + 1);
      commit_copies();
    }
    put_alpha(args_, alpha, streams_.alpha());
    clear_zeros();
    wait();
    __syncthreads();
    if (args_.stream_count > 0) streams_.open(tile_, block_ * kBlockInputs);
    if (args_.streams_only && !streams_.any_open()) {
      wait_copies<0>();
      return;
    }
    transpose(0);
    Sums<kOctets> total = {};
    for (int chunk = 0; chunk < most_chunks_; ++chunk) {
      wait();
      __syncthreads();
      copy_base(chunk + ahead);
      copy_x(chunk + ahead + 1);
      commit_copies();
      transpose(chunk + 1);
      if (chunk < chunks_ && tile_ < args_.tile_count) multiply(chunk, total);
    }
    finish(total);
  }

 private:
  static constexpr int kRawBytes = raw_bytes(kOctets);

  // Until the base of the chunk to be multiplied and x of the one after it have arrived.
  __device__ void wait() const {
    if (args_.stages == 4) {
      wait_copies<2>();
    } else if (args_.stages == 3) {
      wait_copies<1>();
    } else {
      wait_copies<0>();
    }
  }

  __device__ void copy_base(int chunk) const {
    if (chunk >= chunks_ || tile_ >= args_.tile_count || args_.streams_only) return;
    const int block = block_ + chunk;
    blocks_.copy(tile_, block, ring_ + chunk % args_.stages * args_.stage_bytes);
  }

  __device__ int raw(int chunk) const {
    return raw_ + (chunk % args_.stages * args_.k_warps + k_warp_) * kRawBytes;
  }

  __device__ int plane(int chunk) const {
    return planes_ + (chunk % 2 * args_.k_warps + k_warp_) * kOctets * kPlaneBytes;
  }

  // The warps that share a part of the inputs bring x for it.
  __device__ void copy_x(int chunk) const {
    if (chunk >= chunks_) return;
    constexpr int kUnits = kBlockInputs / 8;
    const uint32_t to = shared_address(shared_) + raw(chunk);
    const int first = (block_ + chunk) * kBlockInputs;
    for (int unit = group_lane_; unit < args_.batch * kUnits; unit += args_.row_warps * 32) {
      const int m = unit / kUnits, input = first + unit % kUnits * 8;
      const bool inside = input < args_.columns;
      copy16_async_or_zeros(to + unit * 16, args_.x + static_cast<int64_t>(m) * args_.columns + (inside ? input : 0), inside);
    }
  }

  // Rows past the batch are whatever lay there: each row of x meets its own column of a product alone.
  __device__ void transpose(int chunk) const {
    if (chunk >= chunks_) return;
    constexpr int kEights = kBlockInputs / 8;
    const uint32_t from = shared_address(shared_) + raw(chunk);
    char* to = shared_ + plane(chunk);
    for (int job = group_lane_; job < kOctets * kEights; job += args_.row_warps * 32) {
      const int octet = job / kEights, eight = job % kEights;
      const auto row = [&](int m) { return load16_shared(from + ((octet * 8 + m) * kEights + eight) * 16); };
      transpose_eight(row, eight * 8, to + octet * kPlaneBytes);
    }
  }

  __device__ void clear_zeros() const {
    for (int i = threadIdx.x; i < 2 * args_.k_warps * kOctets; i += blockDim.x) {
      *reinterpret_cast<uint4*>(shared_ + planes_ + i * kPlaneBytes + kBlockInputs * 16) = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ void multiply(int chunk, Sums<kOctets>& total) const {
    const uint32_t planes = shared_address(shared_) + plane(chunk);
    const int block = block_ + chunk;
    if (!args_.streams_only) {
      const int lane_input = ldmatrix_input(place_.lane);
      const uint32_t even = planes + unit_of_input(lane_input) * 16;
      const uint32_t odd = planes + unit_of_input(kStepInputs + lane_input) * 16;
      const auto operand = [&](int step, int octet) {
        return load_matrices_transposed((step % 2 == 0 ? even : odd) + step / 2 * (2 * kStepInputs * 16) + octet * kPlaneBytes);
      };
      products_.add(ring_ + chunk % args_.stages * args_.stage_bytes, block * kBlockInputs, operand, total);
    }
    if (streams_.any_open()) streams_.add(block, planes, total);
  }

  // Sums lie where the ring was: [k_warps, M, rows + kSumsPad].
  __device__ void finish(const Sums<kOctets>& total) const {
    const int rows = args_.row_warps * kTileRows, stride = rows + kSumsPad;
    wait_copies<0>();
    __syncthreads();
    float* mine = reinterpret_cast<float*>(shared_) + k_warp_ * args_.batch * stride +
                  place_.warp % args_.row_warps * kTileRows + place_.row4 * 4;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = octet * 8 + place_.quarter * 2 + i;
        if (m < args_.batch) {
          *reinterpret_cast<float4*>(mine + m * stride) =
              make_float4(total[octet][0][i], total[octet][0][2 + i], total[octet][1][i], total[octet][1][2 + i]);
        }
      }
    }
    meet();
    const int in_row = rows / 4, fours = args_.batch * in_row;
    const int end = part_begin(fours, rank_ + 1, args_.panels);
    for (int i = part_begin(fours, rank_, args_.panels) + static_cast<int>(threadIdx.x); i < end; i += blockDim.x) {
      const int m = i / in_row, four = i % in_row;
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
      for (int part = 0; part < args_.panels * args_.k_warps; ++part) {
        const uint32_t from = shared_address(shared_) + (((part % args_.k_warps) * args_.batch + m) * stride + four * 4) * 4;
        const float4 v = load16_cluster(from, part / args_.k_warps);
        sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
      }
      store(m, blockIdx.y * rows + four * 4, sum);
    }
    if (args_.panels > 1) cluster_barrier();  // others may be reading these sums still
  }

  __device__ void meet() const {
    if (args_.panels > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }

  __device__ void store(int m, int n, const float4& sum) const {
    if (n >= args_.rows || (args_.streams_only && !opens_row(args_, streams_.alpha(), m))) return;
    uint16_t* y = args_.y + static_cast<int64_t>(m) * args_.rows + n;
    const float four[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n + i < args_.rows) y[i] = Type::from_float(args_.streams_only ? four[i] + Type::to_float(y[i]) : four[i]);
    }
  }

  const GemmArgs& args_;
  const Lane place_;
  const BaseBlocks<kWhole> blocks_;
  const Products<Type, kOctets, kWhole> products_;
  char* shared_;
  const int rank_;
  const uint32_t ring_;
  const int raw_, planes_;  // bytes from shared_
  WideStreams<Type, kOctets> streams_;
  int k_warp_, group_lane_, tile_;
  int block_, chunks_, most_chunks_;
};

}  // namespace orth
