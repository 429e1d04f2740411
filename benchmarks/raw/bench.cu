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

#include "checks.cuh"

namespace {

using namespace bench;

constexpr int64_t kRotatedBytes = 320 << 20;

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
