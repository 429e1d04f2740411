// Runs the CUDA kernel's own source on the CPU, lane by lane, against float64; its index arithmetic too.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/plan_cache.h"
#include "cuda/alignment.h"
#include "cuda/dual_gemm.cuh"
#include "cuda/wide_gemm.cuh"
#include "random_layer.h"

namespace {

using namespace orth;

int failures = 0;

void expect(bool good, const char* what, int64_t a = 0, int64_t b = 0, double figure = 0) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s (%ld, %ld) %g\n", what, static_cast<long>(a), static_cast<long>(b), figure);
}

// A copy that is aligned to `bytes` and to no more.
template <typename T>
struct Aligned {
  Aligned(const std::vector<T>& from, uintptr_t bytes)
      : room(static_cast<char*>(std::aligned_alloc(64, from.size() * sizeof(T) / 64 * 64 + 128))),
        data(reinterpret_cast<T*>(room + bytes)) {
    std::copy(from.begin(), from.end(), data);
  }
  Aligned(const Aligned&) = delete;
  ~Aligned() { std::free(room); }

  char* const room;
  T* const data;
};

// An address that is aligned enough is taken, one that is not is named.
void check_alignment() {
  alignas(64) static char room[512];
  struct Operand { const char* name; uintptr_t bytes; };
  const Operand operands[] = {{"x", 16}, {"tiles", 16}, {"scales", 8}, {"y", 8}, {"slice_ptr of stream 1", 4},
                              {"columns of stream 1", 16}, {"values of stream 1", 16}, {"alpha of stream 1", 4},
                              {"w", 16}};
  for (size_t at = 0; at < std::size(operands); ++at) {
    for (uintptr_t past = 2; past <= 32; past += 2) {
      char* p[std::size(operands)];
      for (char*& one : p) one = room;
      p[at] += past;
      const auto stream = [&](size_t first) {
        return Stream{reinterpret_cast<int32_t*>(p[first]), reinterpret_cast<uint16_t*>(p[first + 1]), p[first + 2],
                      DType::kFloat16, reinterpret_cast<float*>(p[first + 3])};
      };
      const BaseLayer base{reinterpret_cast<uint32_t*>(p[1]), p[2], DType::kFloat16, 32, 128, 128};
      const Stream streams[] = {{nullptr, nullptr, nullptr, DType::kFloat16, nullptr}, stream(4)};
      const std::string wanted = std::string(operands[at].name) + ": expected an address that is a multiple of";
      const auto check = [&](bool taken, const char* error) {
        const bool named = error != nullptr && std::string(error).rfind(wanted, 0) == 0;
        const bool good = !taken || past % operands[at].bytes == 0;
        expect(good ? error == nullptr : named, operands[at].name, static_cast<int64_t>(past));
      };
      check(at < 8, misaligned_operand(base, streams, 2, p[0], p[3]));
      check(at == 1 || at == 2 || at == 8, misaligned_operand(base, p[8]));
    }
  }
}

// A product's operands meet: every input of a step once, the same on both sides, no bank met twice.
void check_fragments() {
  std::set<int> rows, inputs, places, units;
  for (int block = 0; block < 2; ++block) {
    for (int row = 0; row < 16; ++row) rows.insert(tile_row(block, row));
  }
  for (int product = 0; product < 2; ++product) {
    for (int slot = 0; slot < 16; ++slot) inputs.insert(step_input(product, slot));
  }
  expect(rows.size() == 32 && *rows.rbegin() == 31, "tile rows");
  expect(inputs.size() == 32 && *inputs.rbegin() == 31, "step inputs");
  for (int first = 0; first < 32; first += 8) {
    std::set<int> reads, writes;
    for (int lane = first; lane < first + 8; ++lane) {
      places.insert(chunk_place(lane / 4, lane % 4));
      reads.insert(chunk_place(lane / 4, lane % 4) % 8);
      writes.insert(chunk_place(lane % 8, lane / 8) % 8);
    }
    expect(reads.size() == 8 && writes.size() == 8, "chunks meet a bank twice", first);
    for (int step = 0; step < 4; ++step) {
      std::set<int> banks;
      for (int lane = first; lane < first + 8; ++lane) banks.insert(unit_of_input(32 * step + ldmatrix_input(lane)) % 8);
      expect(banks.size() == 8, "units meet a bank twice", first, step);
    }
  }
  expect(places.size() == 32 && *places.rbegin() == 31, "chunk places");
  for (int input = 0; input < 128; ++input) units.insert(unit_of_input(input));
  expect(units.size() == 128 && *units.rbegin() == 127, "units");
  for (int product = 0; product < 2; ++product) {
    for (int slot = 0; slot < 16; ++slot) {
      expect(product_unit(96 + step_input(product, slot)) == 96 + 16 * product + slot, "product units", product, slot);
    }
  }
}

// Every plan covers every tile and block once and fits the device.
void check_plans() {
  const Device devices[] = {{132, 232448, 233472, true}, {108, 166912, 167936, false}, {16, 101376, 102400, false}};
  bench::Random random(3);
  for (int i = 0; i < 3000; ++i) {
    const int64_t group = int64_t{32} << random.bits() % 3;
    const Problem p{static_cast<int64_t>(1 + random.bits() % (i % 2 ? 70000 : 300)),
                    std::min<int64_t>(group * static_cast<int64_t>(1 + random.bits() % (i % 3 ? 40 : 2000)), kMaxColumns / group * group),
                    group, static_cast<int64_t>(1 + random.bits() % kFusedRows)};
    const Device& d = devices[i % 3];
    const int blocks = static_cast<int>(block_count(p.columns));
    if (p.batch > kNarrowRows) {
      const WidePlan plan = plan_wide(p, d);
      const int warps = plan.row_warps * plan.k_warps;
      expect(plan.row_groups >= 1 && plan.shared_bytes <= d.shared_bytes, "wide plan fits", p.rows, p.columns);
      expect(8 * plan.octets >= p.batch && warps <= kWarps, "wide plan holds the batch", p.batch);
      expect(int64_t{plan.row_groups} * plan.row_warps >= tile_count(p.rows), "row groups reach every tile", p.rows);
      expect(plan.cluster == 1 || d.clusters, "a cluster where there are none");
      int most = 0;
      for (int rank = 0; rank < plan.cluster; ++rank) {
        const int count = part_begin(blocks, rank + 1, plan.cluster) - part_begin(blocks, rank, plan.cluster);
        expect(count > 0, "an empty rank", blocks, plan.cluster);
        most = std::max(most, (count + plan.k_warps - 1) / plan.k_warps);
      }
      expect(most == plan.chunks, "chunks", most, plan.chunks);
      const int64_t sums = plan.k_warps * p.batch * (plan.row_warps * kTileRows + kSumsPad) * 4;
      const int64_t alpha = kMostStreams * (p.batch + warps * (kTileRows + 2)) * 4;
      expect(sums <= plan.shared_bytes - alpha, "sums reach alpha", p.batch, warps);
      continue;
    }
    const LaunchPlan plan = plan_launch(p, d);
    const int panels = plan.cluster * plan.passes, warps = plan.row_warps * plan.k_warps;
    expect(plan.groups >= 1 && plan.shared_bytes <= d.shared_bytes, "plan fits", p.rows, p.columns);
    expect(plan.gather ? p.batch <= kGatherRows : 8 * plan.octets >= p.batch, "plan holds the batch", p.batch);
    expect(int64_t{plan.groups} * plan.rounds * plan.row_warps >= tile_count(p.rows), "rounds reach every tile", p.rows, p.batch);
    expect(plan.rounds <= kMostRounds && 3 * plan.rounds <= 32, "a lane for each bound", plan.rounds);
    expect(plan.cluster == 1 || d.clusters, "a cluster where there are none");
    expect(warps <= kMostWarps && 1 << log2_of(plan.k_warps) == plan.k_warps && 1 << log2_of(panels) == panels, "powers of two", warps, panels);
    for (int j = 0; j < kNarrowRows * kMostWarps; ++j) {
      expect(static_cast<int>(static_cast<uint32_t>(j) * row_reciprocal(plan.row_warps) >> 16) == j / plan.row_warps, "row quotient", j, plan.row_warps);
    }
    for (int panel = 0; panel < panels; ++panel) {
      const int begin = part_begin(blocks, panel, panels), end = part_begin(blocks, panel + 1, panels);
      expect(begin < end, "an empty panel", blocks, panels);
      if (!plan.gather) {
        expect((end - begin) * kBlockInputs + kPlanePad <= plane_units(p.columns, panels), "a panel fits its plane", panel);
      }
    }
    expect(part_begin(blocks, 0, panels) == 0 && part_begin(blocks, panels, panels) == blocks, "panels cover");
    const int64_t parts = plan.x_bytes + warps * plan.stages * plan.stage_bytes +
                          (plan.rounds > 1 ? 2 : 1) * warps * sum_bytes(plan.gather, plan.octets) +
                          stream_bytes(p.batch, warps, plan.rounds);
    expect(parts == plan.shared_bytes && plan.x_bytes % 16 == 0 && plan.stage_bytes % 16 == 0, "shared memory", parts);
  }
}

bool same(const LaunchPlan& a, const LaunchPlan& b) {
  return a.gather == b.gather && a.octets == b.octets && a.cluster == b.cluster && a.passes == b.passes &&
         a.row_warps == b.row_warps && a.k_warps == b.k_warps && a.groups == b.groups && a.rounds == b.rounds &&
         a.stages == b.stages && a.x_stride == b.x_stride && a.x_bytes == b.x_bytes &&
         a.stage_bytes == b.stage_bytes && a.shared_bytes == b.shared_bytes;
}

bool same(const WidePlan& a, const WidePlan& b) {
  return a.octets == b.octets && a.row_warps == b.row_warps && a.k_warps == b.k_warps && a.cluster == b.cluster &&
         a.row_groups == b.row_groups && a.chunks == b.chunks && a.stages == b.stages &&
         a.stage_bytes == b.stage_bytes && a.shared_bytes == b.shared_bytes;
}

// A cached plan is the one that a search finds: asked for again, by several threads at once, and after more
// shapes than a cache holds. Neighbouring shapes differ in one of the things that a plan depends on.
void check_plan_cache() {
  const Device d{132, 232448, 233472, true};
  static PlanCache cache;
  std::vector<Problem> problems;
  for (const int64_t rows : {int64_t{32}, int64_t{33}, int64_t{1024}, int64_t{28672}, (int64_t{1} << 31) - 1}) {
    for (const int64_t columns : {128, 1920, 4096, 65408}) {
      for (const int64_t group : {32, 64, 128}) {
        for (int64_t batch = 1; batch <= kFusedRows; ++batch) problems.push_back({rows, columns, group, batch});
      }
    }
  }
  expect(problems.size() > PlanCache::kEntries, "more shapes than a cache holds");
  std::vector<LaunchPlan> narrow;
  std::vector<WidePlan> wide;
  for (const Problem& p : problems) {
    narrow.push_back(p.batch > kNarrowRows ? LaunchPlan{} : plan_launch(p, d));
    wide.push_back(p.batch > kNarrowRows ? plan_wide(p, d) : WidePlan{});
  }
  std::atomic<int> wrong{0};
  const auto ask = [&](size_t first) {
    for (size_t i = 0; i < 4 * problems.size(); ++i) {
      const size_t at = (first + i / 4) % problems.size();  // each four times
      const Problem& p = problems[at];
      if (p.batch > kNarrowRows ? !same(cache.wide(p, d), wide[at]) : !same(cache.narrow(p, d), narrow[at])) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i) threads.emplace_back(ask, i * 7);
  for (std::thread& thread : threads) thread.join();
  expect(wrong == 0, "cached plans", wrong);
}

// The two decodings, over every nibble at every place.
template <typename Type>
void check_decode() {
  for (int code = -8; code < 8; ++code) {
    for (int place = 0; place < 8; ++place) {
      uint32_t pair[4];
      Type::decode(static_cast<uint32_t>(code & 15) << (4 * place), pair);
      const float got = Type::to_float(static_cast<uint16_t>(pair[place % 4] >> (place / 4 * 16)));
      expect(got == static_cast<float>(code) * Type::kDecodedUnit, "decode", code, place, got);
    }
  }
}

template <typename Kernel>
void run_grid(const GemmArgs& args, int across, int down, int cluster, int threads, int64_t shared_bytes) {
  for (int y = down - 1; y >= 0; --y) {
    for (int x = 0; x < across; x += cluster) {
      emulated::run_cluster(x, cluster, y, threads, static_cast<size_t>(shared_bytes),
                            [&](char* shared) { Kernel(args, shared).run(); });
    }
  }
}

template <typename Type, bool kWhole>
void launch(GemmArgs args, const Problem& problem, const Device& device) {
  if (problem.batch > kNarrowRows) {
    const WidePlan plan = plan_wide(problem, device);
    args.panels = plan.cluster, args.row_warps = plan.row_warps, args.k_warps = plan.k_warps;
    args.stages = plan.stages, args.stage_bytes = static_cast<int>(plan.stage_bytes);
    const auto run = [&](auto* kernel) {
      run_grid<std::remove_pointer_t<decltype(kernel)>>(args, plan.cluster, plan.row_groups, plan.cluster,
                                                        32 * plan.row_warps * plan.k_warps, plan.shared_bytes);
    };
    const auto run_octets = [&](auto warpgroup) {
      constexpr bool kWarpgroup = decltype(warpgroup)::value;
      if (plan.octets == 4) return run(static_cast<WideGemm<Type, 4, kWhole, kWarpgroup>*>(nullptr));
      return run(static_cast<WideGemm<Type, 8, kWhole, kWarpgroup>*>(nullptr));
    };
    return device.clusters ? run_octets(std::true_type()) : run_octets(std::false_type());
  }
  const LaunchPlan plan = plan_launch(problem, device);
  args.panels = plan.cluster, args.passes = plan.passes, args.row_warps = plan.row_warps, args.k_warps = plan.k_warps;
  args.cluster_log2 = log2_of(plan.cluster), args.passes_log2 = log2_of(plan.passes), args.k_log2 = log2_of(plan.k_warps);
  args.row_reciprocal = row_reciprocal(plan.row_warps);
  args.groups = plan.groups, args.rounds = plan.rounds, args.stages = plan.stages;
  args.x_stride = static_cast<int>(plan.x_stride), args.x_bytes = static_cast<int>(plan.x_bytes);
  args.stage_bytes = static_cast<int>(plan.stage_bytes);
  const auto run = [&](auto* kernel) {
    run_grid<std::remove_pointer_t<decltype(kernel)>>(args, plan.cluster, plan.groups, plan.cluster,
                                                      32 * plan.row_warps * plan.k_warps, plan.shared_bytes);
  };
  if (plan.gather && problem.batch == 1) return run(static_cast<DualGemm<Type, AsRows<1>, kWhole>*>(nullptr));
  if (plan.gather) return run(static_cast<DualGemm<Type, AsRows<kGatherRows>, kWhole>*>(nullptr));
  if (plan.octets == 1) return run(static_cast<DualGemm<Type, AsPlanes<1>, kWhole>*>(nullptr));
  return run(static_cast<DualGemm<Type, AsPlanes<2>, kWhole>*>(nullptr));
}

template <typename Type>
void check_layer(int n, int k, int group, int m, double density, const Device& device) {
  const bench::HostLayer layer(n, k, group, 3);
  bench::HostStream streams[] = {layer.stream(density, 1), layer.stream(density / 3, 2)};
  const Problem problem{n, k, group, m};
  bench::Random random(5);
  std::vector<uint16_t> x, y(static_cast<size_t>(m) * n, 0x7fff);
  std::vector<double> wide;
  for (int i = 0; i < m * k; ++i) {
    x.push_back(Type::from_float(static_cast<float>(random.normal())));
    wide.push_back(Type::to_float(x.back()));
  }
  std::vector<float> alpha;
  for (int i = 0; i < 2 * m; ++i) alpha.push_back(i % m % 3 == 0 ? 0.0f : i % 3 == 1 ? 0.5f : 1.0f);
  const Aligned tiles(layer.tiles, kTilesAlignment);
  const Aligned scales(layer.scales, kScalesAlignment), rows(x, kXAlignment), out(y, kYAlignment);
  const Aligned alphas(alpha, kWordAlignment);
  const Aligned slices0(streams[0].slice_ptr, kWordAlignment), slices1(streams[1].slice_ptr, kWordAlignment);
  const Aligned columns0(streams[0].columns, kEntriesAlignment), columns1(streams[1].columns, kEntriesAlignment);
  const Aligned values0(streams[0].values, kEntriesAlignment), values1(streams[1].values, kEntriesAlignment);
  const StreamView views[] = {{slices0.data, columns0.data, values0.data, alphas.data},
                              {slices1.data, columns1.data, values1.data, alphas.data + m}};
  GemmArgs args{};
  args.tiles = tiles.data, args.scales = scales.data, args.x = rows.data, args.y = out.data;
  args.rows = n, args.columns = k, args.group_size = group, args.batch = m;
  args.tile_count = static_cast<int>(tile_count(n));
  const auto run = [&] {
    std::copy(y.begin(), y.end(), out.data);
    if (group == kBlockInputs) {
      launch<Type, true>(args, problem, device);
    } else {
      launch<Type, false>(args, problem, device);
    }
    std::copy(out.data, out.data + y.size(), y.begin());
  };

  run();
  const std::vector<uint16_t> alone = y;
  args.stream_count = 2;
  std::copy(std::begin(views), std::end(views), args.streams);
  run();
  const std::vector<uint16_t> whole = y;
  const double unit = Type::kIsBFloat ? 0x1p-8 : 0x1p-11;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      bench::Exact exact = bench::base_dot(layer, wide.data() + int64_t{i} * k, j);
      for (int s = 0; s < 2; ++s) {
        const bench::Exact more = bench::stream_dot(layer, streams[s], wide.data() + int64_t{i} * k, j);
        exact.value += alpha[static_cast<size_t>(s * m + i)] * more.value;
        exact.size += alpha[static_cast<size_t>(s * m + i)] * more.size;
      }
      const double steps = static_cast<double>(2 * k + 64) * 0x1p-24;
      const double bound = steps / (1 - steps) * exact.size + unit * std::fabs(exact.value) + 1e-6;
      const double error = std::fabs(Type::to_float(whole[static_cast<size_t>(i) * n + j]) - exact.value);
      expect(error <= bound, "against float64", i, j, error / bound);  // false for NaN
    }
  }
  // Alpha 0 on every row, rubbish behind it: the base alone, bit for bit. Streams alone on top of it.
  const std::vector<float> closed(static_cast<size_t>(2 * m), 0.0f);
  std::vector<int32_t> wild;
  for (size_t i = 0; i < streams[0].slice_ptr.size(); ++i) wild.push_back(static_cast<int32_t>(64 * i));
  for (auto& view : args.streams) view = {wild.data(), nullptr, nullptr, closed.data()};
  run();
  expect(y == alone, "alpha 0 is the base", n, m);
  std::copy(std::begin(views), std::end(views), args.streams);
  // NaN in an open stream reaches the rows that open it, and no other.
  const std::vector<uint16_t> rubbish[] = {std::vector<uint16_t>(streams[0].values.size(), 0x7e00),
                                           std::vector<uint16_t>(streams[1].values.size(), 0x7e00)};
  for (int s = 0; s < 2; ++s) args.streams[s].values = rubbish[s].data();
  run();
  for (int i = 0; i < m; ++i) {
    if (alpha[static_cast<size_t>(i)] != 0.0f || alpha[static_cast<size_t>(m + i)] != 0.0f) continue;
    const auto row = static_cast<long>(i) * n;
    expect(std::equal(y.begin() + row, y.begin() + row + n, alone.begin() + row), "closed row beside NaN", i, m);
  }
  y = alone;
  std::copy(std::begin(views), std::end(views), args.streams);
  args.streams_only = true;
  run();
  for (size_t i = 0; i < y.size(); ++i) {
    const float a = Type::to_float(y[i]), b = Type::to_float(whole[i]);
    const size_t row = i / static_cast<size_t>(n);
    const bool opens = alpha[row] != 0.0f || alpha[static_cast<size_t>(m) + row] != 0.0f;
    expect(opens ? std::fabs(a - b) <= 4 * unit * (std::fabs(b) + 0.05f) : y[i] == alone[i], "streams alone",
           static_cast<int64_t>(i), m, a - b);
  }
}

}  // namespace

int main() {
  check_alignment();
  check_fragments();
  check_plans();
  check_plan_cache();
  check_decode<Half>();
  check_decode<BFloat>();
  const Device few{6, 232448, 233472, true}, many{132, 232448, 233472, true}, old{20, 101376, 102400, false};
  for (const int m : {1, 4, 5, 16, 17, 40}) {
    check_layer<BFloat>(70, 96, 32, m, 0.2, few);
    check_layer<Half>(100, 384, 128, m, 0.1, few);
    check_layer<BFloat>(130, 1152, 128, m, 0.05, m % 2 ? old : many);
  }
  check_layer<Half>(20, 1088, 64, 8, 0.02, few);
  check_layer<Half>(300, 1088, 64, 9, 0.02, many);
  // Inputs split: by clusters with more chunks than stages, and over global memory by both of the others.
  const Device four{4, 232448, 233472, true}, small{4, 60000, 61000, false};
  check_layer<BFloat>(64, 4160, 64, 17, 0.02, four);
  check_layer<Half>(100, 3072, 128, 33, 0.02, four);
  check_layer<BFloat>(32, 8192, 128, 2, 0.02, many);
  check_layer<Half>(40, 2048, 128, 5, 0.02, small);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
