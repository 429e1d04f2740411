// The fused forward: INT4 base and SELL-16 streams, up to 64 rows of x, one launch.
//
// A warp takes 32 output rows x 128 inputs of the base at a time through its own ring in shared
// memory; each lane copies in what it reads itself, so the ring needs no barrier. Codes go into
// tensor-core operands unscaled: their products with x are exact, and a group's float sum is
// multiplied by its scale.
//
// A slot of a stream's slice, one entry for each of 16 rows, is a diagonal operand: its product with
// the 16 rows of transposed x that the entries' columns name adds one entry to each row. Up to 4 rows
// of x, where transposing does not pay, a lane gathers for one output row on the plain cores.
#pragma once

#include "../core/launch_plan.h"
#include "formats.cuh"

namespace orth {

constexpr int kMostStreams = 16;

struct StreamView {
  const int32_t* slice_ptr;
  const uint16_t* columns;
  const uint16_t* values;  // fp16
  const float* alpha;      // [M]
};

struct GemmArgs {
  const uint32_t* tiles;
  const uint16_t* scales;
  const uint16_t* x;
  uint16_t* y;
  int* counters;  // [tiles], 0 before and after
  float* parts;   // [panels, tiles, M, 32]
  int rows, columns, group_size, batch, tile_count;
  int panels, blocks_per_panel;
  int x_stride;  // bytes
  int x_bytes, stage_bytes;
  bool bfloat_scales;
  int stream_count;
  StreamView streams[kMostStreams];
};

template <typename Type, int kOctets, bool kGather, bool kSharedTiles>
struct DualGemm {
  static constexpr int kRedRows = kGather ? kGatherRows : 8 * kOctets;
  static constexpr int kThreads = kSharedTiles ? 32 * kMostWarps : 16 * kMostWarps;

  const GemmArgs& args;
  char* shared;
  uint32_t x_address, ring;
  int warp, warps, lane, row4, quarter;  // row4 = lane / 4, quarter = lane % 4
  int panel, block_begin, block_end, input_begin, plane_bytes, zero_unit;
  int tile_begin, tile_step, tile_total, per_tile;

  __device__ DualGemm(const GemmArgs& a, char* s) : args(a), shared(s) {
    warp = threadIdx.x / 32;
    warps = blockDim.x / 32;
    lane = threadIdx.x % 32;
    row4 = lane / 4;
    quarter = lane % 4;
    panel = blockIdx.x / args.blocks_per_panel;
    const int place = blockIdx.x % args.blocks_per_panel;
    const int blocks = static_cast<int>(block_count(args.columns));
    block_begin = static_cast<int>(part_begin(blocks, panel, args.panels));
    block_end = static_cast<int>(part_begin(blocks, panel + 1, args.panels));
    input_begin = block_begin * kBlockInputs;
    const int units = static_cast<int>(plane_units(args.columns, args.panels));
    plane_bytes = units * 16;
    zero_unit = units - 8;
    x_address = shared_address(shared);
    ring = x_address + args.x_bytes + warp * kStages * args.stage_bytes;
    if (kSharedTiles) {
      tile_begin = place;
      tile_step = args.blocks_per_panel;
      per_tile = (block_end - block_begin + warps - 1) / warps;
    } else {
      // Neighbouring thread blocks take neighbouring tiles.
      tile_begin = warp * args.blocks_per_panel + place;
      tile_step = args.blocks_per_panel * warps;
      per_tile = block_end - block_begin;
    }
    const int left = args.tile_count - tile_begin;
    tile_total = left > 0 ? (left + tile_step - 1) / tile_step : 0;
  }

  __device__ int tile_at(int item) const { return tile_begin + item / per_tile * tile_step; }
  __device__ int block_at(int item) const {
    const int i = item % per_tile;
    return block_begin + (kSharedTiles ? i * warps + warp : i);
  }

  // Starts the copy of item `item` into its stage; a group is committed whatever happens.
  __device__ void fetch(int item) const {
    if (item < tile_total * per_tile) {
      const int tile = tile_at(item), block = block_at(item);
      if (block < block_end) {
        const uint32_t stage = ring + item % kStages * args.stage_bytes;
        const int64_t tile_words = static_cast<int64_t>(args.columns) / 8 * 32;
        const uint32_t* words = args.tiles + tile * tile_words +
                                static_cast<int64_t>(block) * kBlockSteps * kStepWords + step_word(lane);
#pragma unroll
        for (int step = 0; step < kBlockSteps; ++step) {
          if (block * kBlockInputs + step * kStepInputs < args.columns) {
            copy16_async(stage + step * kStepWords * 4 + lane * 16, words + step * kStepWords);
          }
        }
        const int groups = args.columns / args.group_size;
        const int in_block = kBlockInputs / args.group_size;
        for (int g = 0; g < in_block; ++g) {
          const int group = block * in_block + g;
          if (group < groups) {
            copy8_async(stage + kBlockSteps * kStepWords * 4 + g * static_cast<int>(kScaleBytes) + lane * 8,
                        args.scales + (static_cast<int64_t>(tile) * groups + group) * 32 + row4 * 4);
          }
        }
      }
    }
    commit_copies();
  }

  __device__ void load_x() const {
    if (kGather) {
      const int units = args.columns / 8;
      for (int i = threadIdx.x; i < args.batch * units; i += blockDim.x) {
        const int m = i / units, unit = i % units;
        const uint4 v = load16_in_order(args.x + static_cast<int64_t>(m) * args.columns + unit * 8);
        *reinterpret_cast<uint4*>(shared + m * args.x_stride + unit * 16) = v;
      }
      // Column K, where pads point.
      if (threadIdx.x < args.batch) {
        *reinterpret_cast<uint4*>(shared + threadIdx.x * args.x_stride + units * 16) = make_uint4(0, 0, 0, 0);
      }
      return;
    }
    const int end = min(block_end * kBlockInputs, args.columns);
    const int eights = (end - input_begin) / 8;
    for (int i = threadIdx.x; i < kOctets * eights; i += blockDim.x) {
      const int octet = i / eights, eight = i % eights;
      uint4 v[8];
#pragma unroll
      for (int m = 0; m < 8; ++m) {
        const int row = octet * 8 + m;
        v[m] = row < args.batch ? load16_in_order(args.x + static_cast<int64_t>(row) * args.columns +
                                                  input_begin + eight * 8)
                                : make_uint4(0, 0, 0, 0);
      }
      char* plane = shared + octet * plane_bytes;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const uint32_t select = k % 2 == 0 ? 0x5410 : 0x7632;
        uint4 out;
        out.x = __byte_perm(word(v[0], k / 2), word(v[1], k / 2), select);
        out.y = __byte_perm(word(v[2], k / 2), word(v[3], k / 2), select);
        out.z = __byte_perm(word(v[4], k / 2), word(v[5], k / 2), select);
        out.w = __byte_perm(word(v[6], k / 2), word(v[7], k / 2), select);
        *reinterpret_cast<uint4*>(plane + unit_of_input(eight * 8 + k) * 16) = out;
      }
    }
    if (threadIdx.x < kOctets) {
      *reinterpret_cast<uint4*>(shared + threadIdx.x * plane_bytes + zero_unit * 16) = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ static uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }

  // The x operand of both products of the step at `input` (counted from 0), one octet.
  __device__ uint4 x_operand(int input, int octet) const {
    if (kGather) {
      uint4 v = make_uint4(0, 0, 0, 0);
      if (row4 < args.batch) {
        v = load16_shared(x_address + row4 * args.x_stride + (input + quarter * 8) * 2);
      }
      return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                        __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632));
    }
    const int local = input - input_begin + ldmatrix_input(lane);
    return load_matrices_transposed(x_address + octet * plane_bytes + unit_of_input(local) * 16);
  }

  __device__ float scale(uint16_t bits) const {
    return args.bfloat_scales ? BFloat::to_float(bits) : Half::to_float(bits);
  }

  // total += one block of 128 inputs; [octet][product block][4].
  __device__ void multiply(int item, float (&total)[kOctets][2][4]) const {
    const int block = block_at(item);
    if (block >= block_end) return;
    const uint32_t stage = ring + item % kStages * args.stage_bytes;
    const int group_steps = args.group_size / kStepInputs;
    float sum[kOctets][2][4] = {};
#pragma unroll
    for (int step = 0; step < kBlockSteps; ++step) {
      const int input = block * kBlockInputs + step * kStepInputs;
      if (input >= args.columns) break;
      const uint4 words = load16_shared(stage + step * kStepWords * 4 + lane * 16);
      uint32_t a[4][4];
      Type::decode(words.x, a[0]);
      Type::decode(words.y, a[1]);
      Type::decode(words.z, a[2]);
      Type::decode(words.w, a[3]);
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        const uint4 b = x_operand(input, octet);
        Type::mma(sum[octet][0], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
        Type::mma(sum[octet][1], a[2][0], a[3][0], a[2][1], a[3][1], b.x, b.y);
        Type::mma(sum[octet][0], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
        Type::mma(sum[octet][1], a[2][2], a[3][2], a[2][3], a[3][3], b.z, b.w);
      }
      if ((step + 1) % group_steps == 0) {
        const int g = step / group_steps;
        const uint2 bits = load8_shared(stage + kBlockSteps * kStepWords * 4 +
                                        g * static_cast<int>(kScaleBytes) + lane * 8);
        const float s[4] = {scale(bits.x & 0xffff), scale(bits.x >> 16), scale(bits.y & 0xffff),
                            scale(bits.y >> 16)};
#pragma unroll
        for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
          for (int b = 0; b < 2; ++b) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              total[octet][b][i] = fmaf(s[2 * b + i / 2], sum[octet][b][i], total[octet][b][i]);
              sum[octet][b][i] = 0.0f;
            }
          }
        }
      }
    }
  }

  // Bit s: some row opens stream s.
  __device__ uint32_t open_streams() const {
    uint32_t open = 0;
    for (int s = 0; s < args.stream_count; ++s) {
      bool any = false;
      for (int m = lane; m < args.batch; m += 32) {
        any = any || load_in_order(args.streams[s].alpha + m) != 0.0f;
      }
      if (__any_sync(0xffffffffu, any)) open |= 1u << s;
    }
    return open;
  }

  // The slots [begin, end) of a slice that this warp takes.
  struct Share {
    int begin, end;
  };

  __device__ Share share_of(const StreamView& stream, int slice, int worker, int workers) const {
    if (slice * kSliceRows >= args.rows) return {0, 0};
    const int first = __ldg(stream.slice_ptr + slice), last = __ldg(stream.slice_ptr + slice + 1);
    const int pairs = (last - first + 1) / 2;
    const int begin = first + 2 * static_cast<int>(part_begin(pairs, worker, workers));
    const int end = first + 2 * static_cast<int>(part_begin(pairs, worker + 1, workers));
    return {begin, min(end, last)};
  }

  __device__ Share share(const StreamView& stream, int tile, int half) const {
    if (!kSharedTiles) return share_of(stream, 2 * tile + half, 0, 1);
    if (warp % 2 != half) return {0, 0};
    const int worker = warp / 2, workers = warps / 2;
    if (!kGather) return share_of(stream, 2 * tile + half, worker, workers);
    return share_of(stream, 2 * tile + half, panel * workers + worker, args.panels * workers);
  }

  __device__ void prefetch_streams(uint32_t open, int tile) const {
    for (int s = 0; s < args.stream_count; ++s) {
      if (!(open >> s & 1)) continue;
      for (int half = 0; half < 2; ++half) {
        const Share part = share(args.streams[s], tile, half);
        const int lines = (part.end - part.begin + 3) / 4;  // four slots are 128 bytes
        for (int i = lane; i < lines; i += 32) {
          const int64_t entry = (static_cast<int64_t>(part.begin) + i * 4) * kSliceRows;
          prefetch_l2(args.streams[s].columns + entry);
          prefetch_l2(args.streams[s].values + entry);
        }
      }
    }
  }

  // out[m * 32 + row] += alpha[m] * (this warp's share of the tile's rows), where alpha is not 0.
  __device__ void add_streams(uint32_t open, int tile, float* out) const {
    for (int s = 0; s < args.stream_count; ++s) {
      if (!(open >> s & 1)) continue;
      for (int half = 0; half < 2; ++half) {
        const Share part = share(args.streams[s], tile, half);
        if (part.begin >= part.end) continue;
        if (kGather) {
          gather(args.streams[s], part, out + half * kSliceRows);
        } else {
          multiply_slots(args.streams[s], part, out + half * kSliceRows);
        }
        __syncwarp();
      }
    }
  }

  __device__ void gather(const StreamView& stream, Share part, float* out) const {
    float dots[kGatherRows] = {};
    const int first = part.begin * kSliceRows + lane, end = part.end * kSliceRows;
#pragma unroll 8
    for (int entry = first; entry < end; entry += 32) {
      const int column = __ldg(stream.columns + entry);
      const float value = Half::to_float(__ldg(stream.values + entry));
#pragma unroll
      for (int m = 0; m < kGatherRows; ++m) {
        if (m < args.batch) {
          const uint16_t bits = *reinterpret_cast<const uint16_t*>(shared + m * args.x_stride + column * 2);
          dots[m] = fmaf(value, Type::to_float(bits), dots[m]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kGatherRows; ++m) {
      dots[m] += __shfl_xor_sync(0xffffffffu, dots[m], 16);
      if (m < args.batch && lane < kSliceRows) {
        const float alpha = load_in_order(stream.alpha + m);
        if (alpha != 0.0f) out[m * 32 + lane] = fmaf(alpha, dots[m], out[m * 32 + lane]);
      }
    }
  }

  __device__ void multiply_slots(const StreamView& stream, Share part, float* out) const {
    float dots[kOctets][4] = {};
    // Where this lane's two values of a slot stand in the diagonal operand: low or high half.
    const bool diagonal = row4 / 2 == quarter;
    const uint32_t low_bits = !diagonal ? 0x4444u : row4 % 2 == 0 ? 0x4410u : 0x1044u;
    const uint32_t high_bits = !diagonal ? 0x4444u : row4 % 2 == 0 ? 0x4432u : 0x3244u;
    const int inputs = (block_end - block_begin) * kBlockInputs;
    const int first = part.begin * kSliceRows, end = part.end * kSliceRows;
#pragma unroll 4
    for (int pair = first; pair < end; pair += 32) {
      const int entry = pair + lane;
      const int column = entry < end ? __ldg(stream.columns + entry) : args.columns;
      const uint16_t value = entry < end ? __ldg(stream.values + entry) : uint16_t{0};
      const int local = column - input_begin;
      // A pad's column is K; the block that holds K - 1 may go on beyond it.
      const bool inside = local >= 0 && local < inputs && column < args.columns;
      if (args.panels > 1 && !__any_sync(0xffffffffu, inside)) continue;
      uint32_t packed = value;
      if (Type::kIsBFloat) {
        // An fp16 value is the exact sum of two bf16 ones.
        const float whole = Half::to_float(value);
        const uint16_t high = BFloat::from_float(whole);
        packed = high | static_cast<uint32_t>(BFloat::from_float(whole - BFloat::to_float(high))) << 16;
      }
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __shfl_sync(0xffffffffu, packed, row4 + 8 * i);
      const uint32_t unit = (inside ? unit_of_input(local) : zero_unit) * 16;
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        const uint4 b = load_matrices_transposed(x_address + octet * plane_bytes + unit);
        Type::mma(dots[octet], __byte_perm(v[0], 0, low_bits), 0, 0, __byte_perm(v[1], 0, low_bits), b.x, b.y);
        Type::mma(dots[octet], __byte_perm(v[2], 0, low_bits), 0, 0, __byte_perm(v[3], 0, low_bits), b.z, b.w);
        if (Type::kIsBFloat) {
          Type::mma(dots[octet], __byte_perm(v[0], 0, high_bits), 0, 0, __byte_perm(v[1], 0, high_bits), b.x, b.y);
          Type::mma(dots[octet], __byte_perm(v[2], 0, high_bits), 0, 0, __byte_perm(v[3], 0, high_bits), b.z, b.w);
        }
      }
    }
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int m = octet * 8 + quarter * 2 + i % 2, row = row4 + i / 2 * 8;
        if (m < args.batch) {
          const float alpha = load_in_order(stream.alpha + m);
          if (alpha != 0.0f) out[m * 32 + row] = fmaf(alpha, dots[octet][i], out[m * 32 + row]);
        }
      }
    }
  }

  // This warp's sums of a tile, [m][32]; rows of m beyond `count` are left out.
  __device__ void put(const float (&total)[kOctets][2][4], float* out, int count) const {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = octet * 8 + quarter * 2 + i;
        if (m < count) {
          *reinterpret_cast<float4*>(out + m * 32 + row4 * 4) =
              make_float4(total[octet][0][i], total[octet][0][2 + i], total[octet][1][i], total[octet][1][2 + i]);
        }
      }
    }
    __syncwarp();
  }

  __device__ void store(int m, int tile, int row, float value) const {
    const int n = tile * 32 + row;
    if (n < args.rows) args.y[static_cast<int64_t>(m) * args.rows + n] = Type::from_float(value);
  }

  __device__ float* part(int p, int tile) const {
    return args.parts + (static_cast<int64_t>(p) * args.tile_count + tile) * args.batch * 32;
  }

  __device__ void sum_parts(int tile, int first, int step) const {
    for (int i = first; i < args.batch * 32; i += step) {
      float sum = 0.0f;
      for (int p = 0; p < args.panels; ++p) sum += __ldcg(part(p, tile) + i);
      store(i / 32, tile, i % 32, sum);
    }
  }

  __device__ void finish_shared(int tile, const float (&total)[kOctets][2][4], uint32_t open) {
    float* sums = reinterpret_cast<float*>(shared + args.x_bytes + warps * kStages * args.stage_bytes);
    __syncthreads();  // the sums of the tile before have been read
    float* mine = sums + warp * kRedRows * 32;
    put(total, mine, kRedRows);
    add_streams(open, tile, mine);
    __syncthreads();
    for (int i = threadIdx.x; i < args.batch * 32; i += blockDim.x) {
      float sum = 0.0f;
      for (int w = 0; w < warps; ++w) sum += sums[w * kRedRows * 32 + i];
      if (args.panels == 1) {
        store(i / 32, tile, i % 32, sum);
      } else {
        __stcg(part(panel, tile) + i, sum);
      }
    }
    if (args.panels == 1) return;
    __threadfence();
    __syncthreads();
    __shared__ bool last;
    if (threadIdx.x == 0) last = atomicAdd(args.counters + tile, 1) == args.panels - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    sum_parts(tile, threadIdx.x, blockDim.x);
    if (threadIdx.x == 0) args.counters[tile] = 0;
  }

  __device__ void finish_own(int tile, const float (&total)[kOctets][2][4], uint32_t open) {
    float* mine = part(panel, tile);
    put(total, mine, args.batch);
    add_streams(open, tile, mine);
    __threadfence();
    __syncwarp();
    int before = 0;
    if (lane == 0) before = atomicAdd(args.counters + tile, 1);
    before = __shfl_sync(0xffffffffu, before, 0);
    if (before != args.panels - 1) return;
    __threadfence();
    sum_parts(tile, lane, 32);
    if (lane == 0) args.counters[tile] = 0;
  }

  __device__ void run() {
    for (int item = 0; item < kStages; ++item) fetch(item);
    wait_for_previous();
    let_next_start();
    load_x();
    const uint32_t open = open_streams();
    __syncthreads();
    int item = 0;
    for (int t = 0; t < tile_total; ++t) {
      const int tile = tile_begin + t * tile_step;
      if (open != 0) prefetch_streams(open, tile);
      float total[kOctets][2][4] = {};
      for (int i = 0; i < per_tile; ++i, ++item) {
        wait_copies<kStages - 1>();
        multiply(item, total);
        fetch(item + kStages);
      }
      if (kSharedTiles) {
        finish_shared(tile, total, open);
      } else {
        finish_own(tile, total, open);
      }
    }
  }
};

}  // namespace orth
