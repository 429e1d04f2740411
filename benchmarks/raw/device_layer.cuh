// A random layer on the device, in copies enough to leave the cache cold, and calls of the entry points on it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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

namespace bench {

constexpr int kReplays = 15;

inline void* device_bytes(size_t bytes, const void* from = nullptr) {
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
    Random random(seed);
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

}  // namespace bench
