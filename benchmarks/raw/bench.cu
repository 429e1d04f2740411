// Times orth_layer_forward_cuda with CUDA events, no Python: base alone, alpha = 0, 1 and mixed.
//
// Every case is first checked against float64 on sampled outputs. Timed calls stand back to back in
// one CUDA graph and rotate over copies of the weights that together exceed the L2 cache several
// times, so every call reads its weights from memory. Medians over replays.
//
// --check only checks, on ragged shapes; with --quick fewer batches, with --tiny few small layers that still
// reach every kernel, for compute-sanitizer.
//
//   ./bench [--check [--tiny]] [--quick] [--json FILE]
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "cuda/layer_cuda.h"
#include "random_layer.h"

#define CUDA_OK(call)                                                                     \
  do {                                                                                    \
    const cudaError_t error = (call);                                                     \
    if (error != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      std::exit(1);                                                                       \
    }                                                                                     \
  } while (0)

namespace {

using bench::HostLayer;
using bench::HostStream;

constexpr int64_t kRotatedBytes = 320 << 20;
constexpr int kReplays = 15;

void* device_bytes(size_t bytes, const void* from = nullptr) {
  void* out = nullptr;
  CUDA_OK(cudaMalloc(&out, bytes + 256));
  if (from != nullptr) CUDA_OK(cudaMemcpy(out, from, bytes, cudaMemcpyHostToDevice));
  return out;
}

template <typename T>
void* upload(const std::vector<T>& data) { return device_bytes(data.size() * sizeof(T), data.data()); }

// The same bytes several times, so that rotating over them leaves the cache cold.
struct Copies {
  std::vector<void*> at;
  template <typename T>
  Copies(const std::vector<T>& data, int count) {
    at.push_back(upload(data));
    for (int i = 1; i < count; ++i) {
      at.push_back(device_bytes(data.size() * sizeof(T)));
      CUDA_OK(cudaMemcpy(at.back(), at[0], data.size() * sizeof(T), cudaMemcpyDeviceToDevice));
    }
  }
  Copies(const Copies&) = delete;
  ~Copies() {
    for (void* pointer : at) cudaFree(pointer);
  }
};

struct DeviceStream {
  Copies slice_ptr, columns, values;
  DeviceStream(const HostStream& host, int count)
      : slice_ptr(host.slice_ptr, count), columns(host.columns, count), values(host.values, count) {}
};

struct Rows {
  orth::DType type;
  int64_t m, k;
  std::vector<uint16_t> bits;
  std::vector<double> wide;
  void* device;
  Rows(orth::DType t, int64_t rows, int64_t columns, uint64_t seed) : type(t), m(rows), k(columns) {
    bench::Random random(seed);
    for (int64_t i = 0; i < m * k; ++i) {
      const float v = static_cast<float>(random.normal());
      const bool half = type == orth::DType::kFloat16;
      bits.push_back(half ? orth::float_to_half(v) : orth::float_to_bfloat16(v));
      wide.push_back(half ? orth::half_to_float(bits.back()) : orth::bfloat16_to_float(bits.back()));
    }
    device = upload(bits);
  }
  Rows(const Rows&) = delete;
  ~Rows() { cudaFree(device); }
};

struct Runner {
  const HostLayer& host;
  Copies tiles, scales;
  void* y;
  cudaStream_t stream;

  Runner(const HostLayer& layer, int copies)
      : host(layer), tiles(layer.tiles, copies), scales(layer.scales, copies) {
    y = device_bytes(static_cast<size_t>(layer.rows * 512 * 2));
    CUDA_OK(cudaStreamCreate(&stream));
  }
  ~Runner() {
    cudaFree(y);
    cudaStreamDestroy(stream);
  }

  orth::BaseLayer base(size_t copy) const {
    return {static_cast<const uint32_t*>(tiles.at[copy]), scales.at[copy], host.scale_type, host.rows,
            host.columns, host.group_size};
  }

  void call(const Rows& x, const std::vector<const DeviceStream*>& streams, const float* alpha, size_t copy) const {
    std::vector<orth::Stream> views;
    for (size_t s = 0; s < streams.size(); ++s) {
      views.push_back({static_cast<const int32_t*>(streams[s]->slice_ptr.at[copy]),
                       static_cast<const uint16_t*>(streams[s]->columns.at[copy]), streams[s]->values.at[copy],
                       orth::DType::kFloat16, alpha + static_cast<int64_t>(s) * x.m});
    }
    const char* error = orth::orth_layer_forward_cuda(base(copy), views.data(), static_cast<int64_t>(views.size()),
                                                      x.device, x.type, x.m, y, stream);
    if (error != nullptr) {
      std::fprintf(stderr, "orth_layer_forward_cuda: %s\n", error);
      std::exit(1);
    }
  }

  std::vector<uint16_t> result(const Rows& x, const std::vector<const DeviceStream*>& streams, const float* alpha) const {
    std::vector<uint16_t> out(static_cast<size_t>(x.m * host.rows));
    CUDA_OK(cudaMemset(y, 0xff, out.size() * 2));
    CUDA_OK(cudaDeviceSynchronize());
    call(x, streams, alpha, 0);
    CUDA_OK(cudaStreamSynchronize(stream));
    CUDA_OK(cudaMemcpy(out.data(), y, out.size() * 2, cudaMemcpyDeviceToHost));
    return out;
  }

  double microseconds(const Rows& x, const std::vector<const DeviceStream*>& streams, const float* alpha) const {
    const size_t copies = tiles.at.size();
    const size_t calls = std::max<size_t>(copies, 16);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (size_t i = 0; i < calls; ++i) call(x, streams, alpha, i % copies);
    CUDA_OK(cudaStreamEndCapture(stream, &graph));
    CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t start, stop;
    CUDA_OK(cudaEventCreate(&start));
    CUDA_OK(cudaEventCreate(&stop));
    std::vector<double> times;
    for (int i = 0; i < kReplays + 2; ++i) {
      CUDA_OK(cudaEventRecord(start, stream));
      CUDA_OK(cudaGraphLaunch(exec, stream));
      CUDA_OK(cudaEventRecord(stop, stream));
      CUDA_OK(cudaEventSynchronize(stop));
      float ms = 0;
      CUDA_OK(cudaEventElapsedTime(&ms, start, stop));
      if (i >= 2) times.push_back(ms * 1000.0 / static_cast<double>(calls));
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }
};

float from_bits(orth::DType type, uint16_t bits) {
  return type == orth::DType::kFloat16 ? orth::half_to_float(bits) : orth::bfloat16_to_float(bits);
}

// The largest error over its bound, on sampled outputs: float sums in any order (gamma_n, Higham,
// section 3.1), then one rounding to the type of x.
double worst_error(const Runner& run, const Rows& x, const std::vector<const HostStream*>& streams,
                   const std::vector<float>& alpha, const std::vector<uint16_t>& got) {
  const double unit = x.type == orth::DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  bench::Random random(7);
  double worst = 0;
  for (int i = 0; i < 48; ++i) {
    const int64_t n = i < 8 ? std::min<int64_t>(i * 5, run.host.rows - 1)
                    : i < 16 ? std::max<int64_t>(run.host.rows - 1 - (i - 8) * 5, 0)
                             : static_cast<int64_t>(random.bits() % static_cast<uint64_t>(run.host.rows));
    const int64_t step = x.m > 16 ? 5 : 1;
    for (int64_t m = i % step; m < x.m; m += step) {
      bench::Exact exact = bench::base_dot(run.host, x.wide.data() + m * x.k, n);
      for (size_t s = 0; s < streams.size(); ++s) {
        const double a = alpha[s * static_cast<size_t>(x.m) + static_cast<size_t>(m)];
        const bench::Exact more = bench::stream_dot(run.host, *streams[s], x.wide.data() + m * x.k, n);
        exact.value += a * more.value;
        exact.size += a * more.size;
      }
      const double steps = static_cast<double>(2 * x.k + 64) * 0x1p-24;
      const double bound = steps / (1 - steps) * exact.size + unit * std::fabs(exact.value) + 1e-6;
      const double error = std::fabs(from_bits(x.type, got[static_cast<size_t>(m * run.host.rows + n)]) - exact.value);
      worst = error <= bound * 1e6 ? std::max(worst, error / bound) : 1e6;  // NaN too
    }
  }
  return worst;
}

std::vector<float> alpha_of(const std::string& mode, size_t streams, int64_t m) {
  std::vector<float> out(streams * static_cast<size_t>(m), mode == "1" ? 1.0f : 0.0f);
  if (mode == "mixed") {
    for (size_t i = 0; i < out.size(); ++i) out[i] = i % 3 == 0 ? 0.0f : i % 3 == 1 ? 0.5f : 1.0f;
    if (m == 1) out[0] = 0.5f;
  }
  return out;
}

int failures = 0;

void expect(bool good, const char* what, const HostLayer& layer, const Rows& x, double figure = 0) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %ld x %ld group %ld M %ld %s %g\n", what, static_cast<long>(layer.rows),
              static_cast<long>(layer.columns), static_cast<long>(layer.group_size), static_cast<long>(x.m),
              x.type == orth::DType::kFloat16 ? "fp16" : "bf16", figure);
}

// The laws: float64, alpha = 0 is the base bit for bit, closed rows beside poisoned open ones, repeats.
void check_layer(const HostLayer& layer, double density, int64_t m, orth::DType type) {
  Runner run(layer, 1);
  Rows x(type, m, layer.columns, 11);
  const HostStream first = layer.stream(density, 1), second = layer.stream(density / 4, 2);
  DeviceStream a(first, 1), b(second, 1);
  HostStream rubbish = first;
  for (auto& v : rubbish.values) v = 0x7e00;
  DeviceStream poisoned(rubbish, 1);
  for (size_t i = 0; i < rubbish.slice_ptr.size(); ++i) rubbish.slice_ptr[i] = static_cast<int32_t>(i << 20);
  DeviceStream broken(rubbish, 1);

  const std::vector<uint16_t> alone = run.result(x, {}, nullptr);
  expect(worst_error(run, x, {}, {}, alone) <= 1, "base against float64", layer, x, worst_error(run, x, {}, {}, alone));
  for (const char* mode : {"0", "1", "mixed"}) {
    const std::vector<float> alpha = alpha_of(mode, 2, m);
    float* device = static_cast<float*>(upload(alpha));
    const auto got = run.result(x, {&a, &b}, device);
    const double worst = worst_error(run, x, {&first, &second}, alpha, got);
    expect(worst <= 1, (std::string("float64 at alpha ") + mode).c_str(), layer, x, worst);
    expect(got == run.result(x, {&a, &b}, device), "repeat", layer, x);
    if (std::strcmp(mode, "0") == 0) {
      expect(got == alone, "alpha 0 equals base", layer, x);
      expect(run.result(x, {&broken, &broken}, device) == alone, "closed stream unread", layer, x);
    }
    if (std::strcmp(mode, "mixed") == 0) {
      const auto bad = run.result(x, {&poisoned}, device);
      for (int64_t row = 0; row < m; ++row) {
        if (alpha[static_cast<size_t>(row)] != 0.0f) continue;
        const auto at = static_cast<size_t>(row * layer.rows), end = at + static_cast<size_t>(layer.rows);
        expect(std::equal(bad.begin() + static_cast<long>(at), bad.begin() + static_cast<long>(end),
                          alone.begin() + static_cast<long>(at)), "closed row beside NaN", layer, x);
      }
    }
    cudaFree(device);
  }
}

// Rows, columns and group size of the layers to check, and rows of x.
struct Cases {
  std::vector<std::vector<int64_t>> shapes;
  std::vector<int64_t> batches;
};

Cases cases_of(bool quick, bool tiny) {
  // On an H100 or H200: a thread block alone and clusters; x as rows (1, 3) and as planes (8, 16) below 17
  // rows, four octets (20) and eight (40) above.
  if (tiny) return {{{33, 96, 32}, {40, 2176, 128}}, {1, 3, 8, 16, 20, 40}};
  Cases all{{{33, 96, 32}, {100, 384, 128}, {48, 4160, 64}, {1000, 2048, 128}, {300, 14336, 128}},
            {1, 3, 4, 5, 8, 16, 17, 33, 64, 70}};
  if (quick) all.batches = {1, 5, 16, 33, 64};
  return all;
}

void check_all(const Cases& wanted) {
  int cases = 0;
  for (const auto& shape : wanted.shapes) {
    const HostLayer layer(shape[0], shape[1], shape[2], 5);
    for (const int64_t m : wanted.batches) {
      for (const auto type : {orth::DType::kFloat16, orth::DType::kBFloat16}) {
        check_layer(layer, shape[1] > 4000 ? 0.02 : 0.1, m, type);
        ++cases;
      }
    }
  }
  std::printf("checked %d layers, %d failures\n", cases, failures);
}

double copy_bandwidth() {
  const size_t bytes = size_t{1} << 30;
  void *a = device_bytes(bytes), *b = device_bytes(bytes);
  cudaMemset(a, 1, bytes);
  cudaEvent_t start, stop;
  CUDA_OK(cudaEventCreate(&start));
  CUDA_OK(cudaEventCreate(&stop));
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    CUDA_OK(cudaEventRecord(start));
    CUDA_OK(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice));
    CUDA_OK(cudaEventRecord(stop));
    CUDA_OK(cudaEventSynchronize(stop));
    float ms = 0;
    CUDA_OK(cudaEventElapsedTime(&ms, start, stop));
    best = std::max(best, 2.0 * static_cast<double>(bytes) / (ms * 1e-3) / 1e9);
  }
  cudaFree(a);
  cudaFree(b);
  return best;
}

void time_all(bool quick, std::FILE* json) {
  const double copy = copy_bandwidth();
  cudaDeviceProp properties{};
  CUDA_OK(cudaGetDeviceProperties(&properties, 0));
  int clock = 0;
  CUDA_OK(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
  std::printf("%s, %d multiprocessors, %d MHz at most, copy %.0f GB/s\n", properties.name,
              properties.multiProcessorCount, clock / 1000, copy);
  if (json != nullptr) {
    std::fprintf(json, "{\"device\": \"%s\", \"maximum_clock_mhz\": %d, \"copy_gb_s\": %.1f, \"replays\": %d,\n \"cases\": [",
                 properties.name, clock / 1000, copy, kReplays);
  }
  const int64_t shapes[][2] = {{1024, 4096}, {4096, 4096}, {6144, 4096}, {14336, 4096}, {28672, 4096}, {4096, 14336}};
  const char* comma = "\n";
  std::printf("%13s %3s | %7s %5s | %s\n", "N x K", "M", "base us", "% cp", "us at 1%: alpha 0, 1, mixed | at 5%");
  for (const auto& shape : shapes) {
    HostLayer layer(shape[0], shape[1], 128, 3);
    const int64_t bytes = static_cast<int64_t>(layer.tiles.size() * 4 + layer.scales.size() * 2);
    const int copies = static_cast<int>(std::max<int64_t>(kRotatedBytes / bytes, 2));
    Runner run(layer, copies);
    const std::vector<double> densities = {0.01, 0.05};
    const std::vector<HostStream> hosts = {layer.stream(0.01, 1), layer.stream(0.05, 2)};
    const DeviceStream one(hosts[0], copies), five(hosts[1], copies);
    const DeviceStream* streams[] = {&one, &five};
    for (const int64_t m : {1, 4, 8, 16, 32, 64}) {
      if (quick && (m == 4 || m == 32)) continue;
      Rows x(orth::DType::kBFloat16, m, shape[1], 13);
      const auto emit = [&](double density, const char* mode, double us, double error, double moved) {
        if (json == nullptr) return;
        std::fprintf(json,
                     "%s  {\"rows\": %ld, \"columns\": %ld, \"group_size\": 128, \"x\": \"bf16\", \"batch\": %ld, \"density\": %g, "
                     "\"alpha\": \"%s\", \"us\": %.4f, \"gb_s\": %.1f, \"of_copy\": %.4f, \"error_of_bound\": %.4f}",
                     comma, static_cast<long>(shape[0]), static_cast<long>(shape[1]), static_cast<long>(m), density, mode,
                     us, moved / us / 1e3, moved / us / 1e3 / copy, error);
        comma = ",\n";
      };
      const double moved = static_cast<double>(bytes + 2 * m * (shape[0] + shape[1]));
      const auto alone = run.result(x, {}, nullptr);
      const double base_error = worst_error(run, x, {}, {}, alone);
      expect(base_error <= 1, "base", layer, x, base_error);
      const double base_us = run.microseconds(x, {}, nullptr);
      emit(0, "none", base_us, base_error, moved);
      std::printf("%6ldx%-6ld %3ld | %7.2f %5.1f |", static_cast<long>(shape[0]), static_cast<long>(shape[1]),
                  static_cast<long>(m), base_us, 100 * moved / base_us / 1e3 / copy);
      for (size_t d = 0; d < 2; ++d) {
        for (const char* mode : {"0", "1", "mixed"}) {
          const std::vector<float> alpha = alpha_of(mode, 1, m);
          float* device = static_cast<float*>(upload(alpha));
          const auto got = run.result(x, {streams[d]}, device);
          const double error = worst_error(run, x, {&hosts[d]}, alpha, got);
          expect(error <= 1, mode, layer, x, error);
          if (std::strcmp(mode, "0") == 0) expect(got == alone, "alpha 0 equals base", layer, x);
          const double us = run.microseconds(x, {streams[d]}, device);
          const bool read = std::strcmp(mode, "0") != 0;
          emit(densities[d], mode, us, error,
               moved + (read ? 4.0 * static_cast<double>(hosts[d].entries) : 0.0));
          std::printf(" %7.2f", us);
          cudaFree(device);
        }
        std::printf(d == 0 ? " |" : "\n");
      }
      std::fflush(stdout);
    }
  }
  if (json != nullptr) std::fprintf(json, "\n]}\n");
}

}  // namespace

int main(int argc, char** argv) {
  bool check = false, quick = false, tiny = false;
  std::FILE* json = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--check") == 0) {
      check = true;
    } else if (std::strcmp(argv[i], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(argv[i], "--tiny") == 0) {
      tiny = true;
    } else if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc) {
      json = std::fopen(argv[++i], "w");
    } else {
      std::fprintf(stderr, "usage: %s [--check [--tiny]] [--quick] [--json FILE]\n", argv[0]);
      return 2;
    }
  }
  if (tiny && !check) {
    std::fprintf(stderr, "%s: --tiny chooses what is checked, and --check is not given: add it\n", argv[0]);
    return 2;
  }
  if (check) {
    check_all(cases_of(quick, tiny));
  } else {
    time_all(quick, json);
  }
  if (json != nullptr) std::fclose(json);
  return failures == 0 ? 0 : 1;
}
