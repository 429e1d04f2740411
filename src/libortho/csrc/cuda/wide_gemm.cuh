// The fused forward for many rows of x: INT4 base and SELL-16 streams in one launch. core/wide_plan.h
// says which thread block and warp takes what.
//
// x comes to shared memory as it lies, a chunk ahead, and is transposed there; one barrier a chunk. On
// Hopper half of the warps start all copies and the others transpose: what the tensor cores are to read
// has to be shown to them, and a thread that does so waits for its own copies too.
#pragma once

#include "wide_products.cuh"
#include "wide_streams.cuh"
#include "wide_x.cuh"

namespace orth {

template <typename Type, int kOctets, bool kWhole, bool kWarpgroup>
class WideGemm {
 public:
  __device__ WideGemm(const GemmArgs& args, char* shared)
      : args_(args), blocks_(args, place_), products_(args, place_, blocks_), row_warp_(place_.warp % args.row_warps),
        duty_warps_(kWarpgroup ? args.row_warps / 2 : args.row_warps),
        x_(args, row_warp_ % duty_warps_ * 32 + place_.lane, duty_warps_), shared_(shared), rank_(blockIdx.x),
        k_warp_(place_.warp / args.row_warps), tile_(blockIdx.y * args.row_warps + row_warp_),
        ring_(place_.warp * args.stages * args.stage_bytes),
        raw_(args.stages * place_.warps * args.stage_bytes + k_warp_ * args.stages * kRawBytes),
        planes_(args.stages * (place_.warps * args.stage_bytes + args.k_warps * kRawBytes) + k_warp_ * 2 * kPlanesBytes),
        streams_(args, place_, shared + args.stages * (place_.warps * args.stage_bytes + args.k_warps * kRawBytes) +
                                   args.k_warps * 2 * kPlanesBytes) {
    const int begin = part_begin(blocks_.count(), rank_, args.panels);
    const int count = part_begin(blocks_.count(), rank_ + 1, args.panels) - begin;
    block_ = begin + part_begin(count, k_warp_, args.k_warps);
    chunks_ = begin + part_begin(count, k_warp_ + 1, args.k_warps) - block_;
    most_chunks_ = (count + args.k_warps - 1) / args.k_warps;
  }

  __device__ void run() {
    const int ahead = args_.stages - 1;
    for (int chunk = 0; chunk < ahead; ++chunk) copy_base(chunk, chunk);
    wait_for_previous();
    let_next_start();
    const WideAlpha alpha(args_);
    copy_x(0, 0);
    for (int chunk = 1; chunk <= ahead; ++chunk) {
      copy_x(chunk, chunk);
      commit_copies();
    }
    alpha.put(args_, streams_.alpha());
    clear_zeros();
    wait();
    __syncthreads();
    if (args_.stream_count > 0) streams_.open(tile_, block_ * kBlockInputs);
    if (args_.streams_only && !streams_.any_open()) {
      wait_copies<0>();
      return;
    }
    transpose(0, 0);
    // Two loops, so that the one for closed streams holds nothing of what open ones need.
    Sums<kOctets> total = {};
    if (streams_.any_open()) {
      multiply_chunks<true>(total);
    } else {
      multiply_chunks<false>(total);
    }
    finish(total);
  }

 private:
  static constexpr int kRawBytes = raw_bytes(kOctets), kPlanesBytes = kOctets * kPlaneBytes;

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

  // This warp's own block, and that of the warp that transposes.
  __device__ void copy_base(int chunk, int slot) const {
    if (chunk >= chunks_ || row_warp_ < args_.row_warps - duty_warps_ || args_.streams_only) return;
    for (int back = 0; back < args_.row_warps; back += duty_warps_) {
      const int tile = tile_ - back, block = block_ + chunk;
      if (tile >= args_.tile_count) continue;
      blocks_.copy(tile, block, shared_address(shared_) + ring_ + (slot - back * args_.stages) * args_.stage_bytes);
    }
  }

  __device__ void copy_x(int chunk, int slot) const {
    if (chunk >= chunks_ || row_warp_ < args_.row_warps - duty_warps_) return;
    x_.copy((block_ + chunk) * kBlockInputs, shared_address(shared_) + raw_ + slot * kRawBytes);
  }

  __device__ int planes(int chunk) const { return planes_ + chunk % 2 * kPlanesBytes; }

  __device__ void transpose(int chunk, int slot) const {
    if (chunk >= chunks_ || row_warp_ >= duty_warps_) return;
    x_.transpose(shared_address(shared_) + raw_ + slot * kRawBytes, shared_ + planes(chunk));
    show_to_products();
  }

  __device__ void clear_zeros() const {
    const int thread = static_cast<int>(threadIdx.x) - k_warp_ * args_.row_warps * 32;
    if (thread < 2 * kOctets) {
      *reinterpret_cast<uint4*>(shared_ + planes_ + thread * kPlaneBytes + kBlockInputs * 16) = make_uint4(0, 0, 0, 0);
    }
  }

  template <bool kStreams>
  __device__ void multiply_chunks(Sums<kOctets>& total) const {
    const int ahead = args_.stages - 1;
    // Slots of the rings: of this chunk, and of the one after it.
    for (int chunk = 0, now = 0, next = 1; chunk < most_chunks_; ++chunk) {
      wait();
      __syncthreads();
      copy_base(chunk + ahead, now == 0 ? ahead : now - 1);
      copy_x(chunk + ahead + 1, now);
      commit_copies();
      transpose(chunk + 1, next);
      if (chunk < chunks_) {
        const uint32_t x = shared_address(shared_) + planes(chunk);
        const int block = block_ + chunk;
        if (!kStreams || !args_.streams_only) {
          products_.add(shared_address(shared_) + ring_ + now * args_.stage_bytes, block * kBlockInputs, x, total);
        }
        if (kStreams) streams_.add(block, x, total);
      }
      now = next;
      next = next == ahead ? 0 : next + 1;
    }
  }

  __device__ void finish(const Sums<kOctets>& total) const {
    if (args_.panels * args_.k_warps == 1) {
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int m = octet * 8 + place_.quarter * 2 + i;
          if (m < args_.batch) store(m, tile_ * kTileRows + place_.row4 * 4, four_rows(total, octet, i));
        }
      }
    } else {
      share_sums(total);
    }
  }

  __device__ static float4 four_rows(const Sums<kOctets>& total, int octet, int i) {
    return make_float4(total[octet][0][i], total[octet][0][2 + i], total[octet][1][i], total[octet][1][2 + i]);
  }

  // Sums lie where the ring was: [k_warps, M, rows + kSumsPad].
  __device__ void share_sums(const Sums<kOctets>& total) const {
    const int rows = args_.row_warps * kTileRows, stride = rows + kSumsPad;
    __syncthreads();
    float* mine = reinterpret_cast<float*>(shared_) + k_warp_ * args_.batch * stride + row_warp_ * kTileRows + place_.row4 * 4;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = octet * 8 + place_.quarter * 2 + i;
        if (m < args_.batch) *reinterpret_cast<float4*>(mine + m * stride) = four_rows(total, octet, i);
      }
    }
    meet();
    // A thread keeps to four output rows; the thread blocks of a cluster share the batch. Several rows of
    // the batch at once, so that their loads wait together.
    constexpr int kTogether = 4;
    const int fours = rows / 4, four = static_cast<int>(threadIdx.x) % fours, turn = 4 * args_.k_warps;
    const int end = part_begin(args_.batch, rank_ + 1, args_.panels);
    for (int m = part_begin(args_.batch, rank_, args_.panels) + static_cast<int>(threadIdx.x) / fours; m < end;
         m += kTogether * turn) {
      float4 sum[kTogether] = {};
      for (int k_warp = 0; k_warp < args_.k_warps; ++k_warp) {
        const uint32_t from = shared_address(shared_) + ((k_warp * args_.batch + m) * stride + four * 4) * 4;
#pragma unroll 2
        for (int rank = 0; rank < args_.panels; ++rank) {
          float4 v[kTogether];
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            if (m + i * turn < end) v[i] = load16_cluster(from + i * turn * stride * 4, rank);
          }
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            sum[i] = make_float4(sum[i].x + v[i].x, sum[i].y + v[i].y, sum[i].z + v[i].z, sum[i].w + v[i].w);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (m + i * turn < end) store(m + i * turn, blockIdx.y * rows + four * 4, sum[i]);
      }
    }
    if (args_.panels > 1) leave_cluster();  // others may be reading these sums still
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
    if (args_.rows % 4 == 0 && !args_.streams_only) {
      const auto pair = [&](int i) {
        return Type::from_float(four[i]) | static_cast<uint32_t>(Type::from_float(four[i + 1])) << 16;
      };
      *reinterpret_cast<uint2*>(y) = make_uint2(pair(0), pair(2));
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n + i < args_.rows) y[i] = Type::from_float(args_.streams_only ? four[i] + Type::to_float(y[i]) : four[i]);
    }
  }

  const GemmArgs& args_;
  const Lane place_;
  const BaseBlocks<kWhole> blocks_;
  const WideProducts<Type, kOctets, kWhole, kWarpgroup> products_;
  const int row_warp_, duty_warps_;
  const WideX<kOctets, kWhole> x_;
  char* shared_;
  const int rank_, k_warp_, tile_;
  const int ring_, raw_, planes_;  // bytes from shared_
  WideStreams<Type, kOctets> streams_;
  int block_, chunks_, most_chunks_;
};

}  // namespace orth
