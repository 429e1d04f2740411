// The kernels' machine instructions on a CPU: the threads of the blocks of a cluster are fibers, and what
// a warp does together happens when all of its 32 lanes have arrived. A lane that does not arrive, or arrives at
// another instruction, stops the program. An asynchronous copy lands only when it is waited for. Warps
// run in a random order and fall behind at random, so that a missing barrier shows as a wrong result.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "core/numeric.h"

#define __device__
#define __forceinline__ inline
#define __shared__ static

struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int min(int a, int b) { return a < b ? a : b; }

struct Index { int x, y; };

namespace emulated {

constexpr size_t kStack = 96 * 1024;

struct Copy { uint32_t to; const char* from; int bytes; };
using Products = std::vector<std::function<void()>>;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  std::vector<std::vector<Copy>> groups{1};
  std::vector<Products> products{1};
};

struct Warp {
  int arrived = 0, generation = 0;
  const void* kind = nullptr;
  uint32_t in[32][12], out[32][4];
};

struct Block {
  int index = 0;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char> shared;
  int current = 0, at_barrier = 0, barrier = 0;
  bool any = false, any_before = false;
};

inline std::vector<Block>* cluster = nullptr;
inline Block* block = nullptr;
inline ucontext_t scheduler;
inline int block_panel = 0, block_size = 0, at_cluster_barrier = 0, cluster_barriers = 0;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated: %s, block %d thread %d\n", what, block->index, block->current);
  std::exit(3);
}

inline void yield() {
  const int me = block->current;
  swapcontext(&block->fibers[static_cast<size_t>(me)].context, &scheduler);
}

inline Warp& warp() { return block->warps[static_cast<size_t>(block->current / 32)]; }
inline int lane() { return block->current % 32; }

// All 32 lanes give their inputs; the last one to come runs `act` for the warp.
template <typename Act>
void together(const void* kind, const Act& act) {
  Warp& w = warp();
  if (w.arrived > 0 && w.kind != kind) fail("lanes of a warp meet at different instructions");
  w.kind = kind;
  const int generation = w.generation;
  if (++w.arrived == 32) {
    act(w);
    w.arrived = 0;
    ++w.generation;
  } else {
    while (w.generation == generation) yield();
  }
}

// In a cluster the upper bits of a shared address name the thread block.
constexpr int kRankBit = 24;
inline uint32_t rank() { return static_cast<uint32_t>(block - cluster->data()); }

inline char* at(uint32_t address, int bytes) {
  if (address >> kRankBit != rank()) fail("another thread block's address");
  address &= (1u << kRankBit) - 1;
  if (address + static_cast<uint32_t>(bytes) > block->shared.size()) fail("outside shared memory");
  if (address % static_cast<uint32_t>(bytes) != 0) fail("misaligned shared address");
  return block->shared.data() + address;
}

// Blocks [first, first + count) of a row of the grid, as one cluster.
inline void run_cluster(int first, int count, int panel, int threads, size_t shared_bytes,
                        const std::function<void(char*)>& body) {
  std::vector<Block> here(static_cast<size_t>(count));
  cluster = &here;
  block_panel = panel;
  block_size = threads;
  static const std::function<void(char*)>* entry;
  entry = &body;
  for (Block& made : here) {
    made.index = first++;
    made.shared.assign(shared_bytes, static_cast<char>(0xff));  // NaN in every format
    made.warps.resize(static_cast<size_t>(threads / 32));
    made.fibers.resize(static_cast<size_t>(threads));
    for (auto& fiber : made.fibers) {
      fiber.stack = std::make_unique<char[]>(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, +[] {
        (*entry)(block->shared.data());
        block->fibers[static_cast<size_t>(block->current)].done = true;
        yield();
      }, 0);
    }
  }
  static uint64_t luck = 0x9e3779b97f4a7c15;
  for (int left = 1, idle = 0; left > 0;) {
    left = 0;
    for (Block& now : here) {
      luck ^= luck << 13, luck ^= luck >> 7, luck ^= luck << 17;  // xorshift64 (Marsaglia 2003)
      const int turn = static_cast<int>(luck >> 32) & 7;
      for (int at = 0; at < threads; ++at) {
        const int i = (at + 32 * turn) % threads;
        if (now.fibers[static_cast<size_t>(i)].done) continue;
        ++left;
        if (luck >> (i / 32) & 1) continue;
        block = &now;
        now.current = i;
        swapcontext(&scheduler, &now.fibers[static_cast<size_t>(i)].context);
      }
    }
    if (++idle > 2000000) fail("threads wait for ever");
  }
}

}  // namespace emulated

#define threadIdx (Index{emulated::block->current, 0})
#define blockIdx (Index{emulated::block->index, emulated::block_panel})
#define blockDim (Index{emulated::block_size, 1})

inline bool __syncthreads_or(bool value) {
  auto& b = *emulated::block;
  const int barrier = b.barrier;
  b.any = b.any || value;
  if (++b.at_barrier == static_cast<int>(b.fibers.size())) {
    b.at_barrier = 0;
    b.any_before = b.any;
    b.any = false;
    ++b.barrier;
  } else {
    while (b.barrier == barrier) emulated::yield();
  }
  return b.any_before;
}
inline void __syncthreads() { __syncthreads_or(false); }

inline void __syncwarp() {
  static const char kind = 0;
  emulated::together(&kind, [](emulated::Warp&) {});
}

template <typename T>
T emulated_shuffle(const void* kind, T value, int source) {
  auto& w = emulated::warp();
  std::memcpy(w.in[emulated::lane()], &value, sizeof value);
  w.in[emulated::lane()][1] = static_cast<uint32_t>(source);
  emulated::together(kind, [](emulated::Warp& all) {
    for (int l = 0; l < 32; ++l) all.out[l][0] = all.in[all.in[l][1] % 32][0];
  });
  T out;
  std::memcpy(&out, w.out[emulated::lane()], sizeof out);
  return out;
}
template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  static const char kind = 0;
  return emulated_shuffle(&kind, value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static const char kind = 0;
  return emulated_shuffle(&kind, value, emulated::lane() ^ mask);
}
inline bool __any_sync(unsigned, bool value) {
  static const char kind = 0;
  auto& w = emulated::warp();
  w.in[emulated::lane()][0] = value;
  emulated::together(&kind, [](emulated::Warp& all) {
    uint32_t any = 0;
    for (auto& in : all.in) any |= in[0];
    for (auto& out : all.out) out[0] = any;
  });
  return w.out[emulated::lane()][0] != 0;
}

inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  }
  return out;
}
template <typename T>
T __ldg(const T* p) { return *p; }

namespace orth {

inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const char*>(p) - emulated::block->shared.data()) |
         emulated::rank() << emulated::kRankBit;
}
inline emulated::Fiber& fiber() { return emulated::block->fibers[static_cast<size_t>(emulated::block->current)]; }
inline void copy_async(uint32_t shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(global) % static_cast<uintptr_t>(bytes) != 0) emulated::fail("misaligned copy");
  std::memset(emulated::at(shared, bytes), 0xff, static_cast<size_t>(bytes));
  fiber().groups.back().push_back({shared, static_cast<const char*>(global), bytes});
}
inline void copy16_async(uint32_t shared, const void* global) { copy_async(shared, global, 16); }
inline void copy4_async(uint32_t shared, const void* global) { copy_async(shared, global, 4); }
inline void copy8_async(uint32_t shared, const void* global) { copy_async(shared, global, 8); }
inline void copy16_async_or_zeros(uint32_t shared, const void* global, bool copy) {
  static const uint4 zeros{};
  copy_async(shared, copy ? global : &zeros, 16);
}
inline void commit_copies() { fiber().groups.emplace_back(); }
template <int N>
void wait_copies() {
  auto& groups = fiber().groups;
  while (groups.size() > N + 1) {
    for (const auto& copy : groups.front()) {
      std::memcpy(emulated::at(copy.to, copy.bytes), copy.from, static_cast<size_t>(copy.bytes));
    }
    groups.erase(groups.begin());
  }
}
inline void wait_for_previous() {}
inline void let_next_start() {}
inline uint4 load16_in_order(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulated::fail("misaligned load");
  uint4 v;
  std::memcpy(&v, p, 16);
  return v;
}
inline float load_in_order(const float* p) { return *p; }
inline void prefetch_l2(const void*) {}
inline uint4 load16_shared(uint32_t address) {
  uint4 v;
  std::memcpy(&v, emulated::at(address, 16), 16);
  return v;
}
inline uint2 load8_shared(uint32_t address) {
  uint2 v;
  std::memcpy(&v, emulated::at(address, 8), 8);
  return v;
}
inline uint32_t load4_shared(uint32_t address) {
  uint32_t v;
  std::memcpy(&v, emulated::at(address, 4), 4);
  return v;
}
inline float load_float_shared(uint32_t address) {
  float v;
  std::memcpy(&v, emulated::at(address, 4), 4);
  return v;
}
inline float4 load_floats_shared(uint32_t address) {
  float4 v;
  std::memcpy(&v, emulated::at(address, 16), 16);
  return v;
}
inline uint16_t load2_shared(uint32_t address) {
  uint16_t v;
  std::memcpy(&v, emulated::at(address, 2), 2);
  return v;
}
inline uint4 load_matrices_transposed(uint32_t address) {
  static const char kind = 0;
  auto& w = emulated::warp();
  w.in[emulated::lane()][0] = address;
  emulated::together(&kind, [](emulated::Warp& all) {
    for (int l = 0; l < 32; ++l) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t out = 0;
        for (int half = 0; half < 2; ++half) {
          uint16_t item;
          const char* row = emulated::at(all.in[8 * matrix + 2 * (l % 4) + half][0], 16);
          std::memcpy(&item, row + 2 * (l / 4), 2);
          out |= static_cast<uint32_t>(item) << (16 * half);
        }
        all.out[l][matrix] = out;
      }
    }
  });
  const uint32_t* out = w.out[emulated::lane()];
  return {out[0], out[1], out[2], out[3]};
}

inline void cluster_barrier() {
  const int passed = emulated::cluster_barriers;
  if (++emulated::at_cluster_barrier == static_cast<int>(emulated::cluster->size()) * emulated::block_size) {
    emulated::at_cluster_barrier = 0;
    ++emulated::cluster_barriers;
  } else {
    while (emulated::cluster_barriers == passed) emulated::yield();
  }
}
inline void leave_cluster() { cluster_barrier(); }
inline float4 load16_cluster(uint32_t address, int rank) {
  emulated::Block* const here = emulated::block;
  const uint32_t offset = address & ((1u << emulated::kRankBit) - 1);
  emulated::block = &(*emulated::cluster)[static_cast<size_t>(rank)];
  float4 v;
  std::memcpy(&v, emulated::at(offset | emulated::rank() << emulated::kRankBit, 16), 16);
  emulated::block = here;
  return v;
}

}  // namespace orth

#include "emulated_products.h"
