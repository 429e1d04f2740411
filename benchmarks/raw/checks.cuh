// The laws of the entry points on small and ragged layers, and the float64 result that they are held to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "device_layer.cuh"

namespace bench {

inline float from_bits(orth::DType type, uint16_t bits) {
  return type == orth::DType::kFloat16 ? orth::half_to_float(bits) : orth::bfloat16_to_float(bits);
}

// The largest error over its bound, on sampled outputs: float sums in any order (gamma_n, Higham,
// section 3.1), then one rounding to the type of x.
inline double worst_error(const Runner& run, const Rows& x, const std::vector<const HostStream*>& streams,
                   const std::vector<float>& alpha, const std::vector<uint16_t>& got) {
  const double unit = x.type == orth::DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  Random random(7);
  double worst = 0;
  for (int i = 0; i < 48; ++i) {
    const int64_t n = i < 8 ? std::min<int64_t>(i * 5, run.host.rows - 1)
                    : i < 16 ? std::max<int64_t>(run.host.rows - 1 - (i - 8) * 5, 0)
                             : static_cast<int64_t>(random.bits() % static_cast<uint64_t>(run.host.rows));
    const int64_t step = x.m > 16 ? 5 : 1;
    for (int64_t m = i % step; m < x.m; m += step) {
      Exact exact = base_dot(run.host, x.wide.data() + m * x.k, n);
      for (size_t s = 0; s < streams.size(); ++s) {
        const double a = alpha[s * static_cast<size_t>(x.m) + static_cast<size_t>(m)];
        const Exact more = stream_dot(run.host, *streams[s], x.wide.data() + m * x.k, n);
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

inline std::vector<float> alpha_of(const std::string& mode, size_t streams, int64_t m) {
  std::vector<float> out(streams * static_cast<size_t>(m), mode == "1" ? 1.0f : 0.0f);
  if (mode == "mixed") {
    for (size_t i = 0; i < out.size(); ++i) out[i] = i % 3 == 0 ? 0.0f : i % 3 == 1 ? 0.5f : 1.0f;
    if (m == 1) out[0] = 0.5f;
  }
  return out;
}

inline int failures = 0;

inline void expect(bool good, const char* what, const HostLayer& layer, const Rows& x, double figure = 0) {
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %ld x %ld group %ld M %ld %s %g\n", what, static_cast<long>(layer.rows),
              static_cast<long>(layer.columns), static_cast<long>(layer.group_size), static_cast<long>(x.m),
              x.type == orth::DType::kFloat16 ? "fp16" : "bf16", figure);
}

// The laws: float64, alpha = 0 is the base bit for bit, closed rows beside poisoned open ones, repeats.
inline void check_layer(const HostLayer& layer, double density, int64_t m, orth::DType type) {
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

inline Cases cases_of(bool quick, bool tiny) {
  // On an H100 or H200: a thread block alone and clusters; x as rows (1, 3) and as planes (8, 16) below 17
  // rows, four octets (20) and eight (40) above.
  if (tiny) return {{{33, 96, 32}, {40, 2176, 128}}, {1, 3, 8, 16, 20, 40}};
  Cases all{{{33, 96, 32}, {100, 384, 128}, {48, 4160, 64}, {1000, 2048, 128}, {300, 14336, 128}},
            {1, 3, 4, 5, 8, 16, 17, 33, 64, 70}};
  if (quick) all.batches = {1, 5, 16, 33, 64};
  return all;
}

inline void check_all(const Cases& wanted) {
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

}  // namespace bench
