#include "dual_gemm.cuh"
#include "wide_gemm.cuh"

#include "dequantize.cuh"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <mutex>
#include <utility>

#include "../core/plan_cache.h"
#include "alignment.h"
#include "layer_cuda.h"

namespace orth {
namespace {

constexpr int kMostDevices = 64;

template <typename Type, typename As, bool kWhole>
__global__ void __launch_bounds__(32 * kMostWarps, 1) dual_gemm(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(128) char shared[];
  DualGemm<Type, As, kWhole>(args, shared).run();
}

template <typename Type, int kOctets, bool kWhole>
__global__ void __launch_bounds__(32 * kWarps, kOctets == 8 ? 1 : 2)
    wide_gemm(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(128) char shared[];
  WideGemm<Type, kOctets, kWhole, kWarpgroups>(args, shared).run();
}

struct DeviceInfo {
  std::atomic<bool> known{false};
  int index = 0;
  Device device{};
  PlanCache plans;
};

std::array<DeviceInfo, kMostDevices> device_infos;
std::mutex learning;

cudaError_t current_device(DeviceInfo** info) {
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  if (error != cudaSuccess) return error;
  if (index >= kMostDevices) return cudaErrorInvalidDevice;
  DeviceInfo& slot = device_infos[static_cast<size_t>(index)];
  *info = &slot;
  if (slot.known.load(std::memory_order_acquire)) return cudaSuccess;
  const std::lock_guard<std::mutex> alone(learning);
  if (!slot.known.load(std::memory_order_relaxed)) {
    int processors = 0, block = 0, processor = 0, major = 0;
    const std::array<std::pair<int*, cudaDeviceAttr>, 4> wanted{{
        {&processors, cudaDevAttrMultiProcessorCount},
        {&block, cudaDevAttrMaxSharedMemoryPerBlockOptin},
        {&processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor},
        {&major, cudaDevAttrComputeCapabilityMajor},
    }};
    for (const auto& [value, attribute] : wanted) {
      error = cudaDeviceGetAttribute(value, attribute, index);
      if (error != cudaSuccess) return error;
    }
    slot.index = index;
    // What is compiled for 9.0 runs on nothing else; others take code without clusters.
    slot.device = {processors, block, processor, major == 9};
    slot.known.store(true, std::memory_order_release);
  }
  return cudaSuccess;
}

struct Shape {
  dim3 grid;
  int threads, cluster;
  int64_t shared_bytes;
};

// One launch; where the device can, it begins before the kernel ahead of it has ended.
template <typename Kernel>
cudaError_t launch(Kernel kernel, std::array<std::atomic<int64_t>, kMostDevices>& allowed, const Shape& shape,
                   const GemmArgs& args, const DeviceInfo& info, cudaStream_t stream) {
  const Device& device = info.device;
  std::atomic<int64_t>& limit = allowed[static_cast<size_t>(info.index)];
  if (limit.load(std::memory_order_acquire) < shape.shared_bytes) {
    cudaFuncAttributes attributes{};
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) return error;
    const int most = static_cast<int>(device.shared_bytes) - static_cast<int>(attributes.sharedSizeBytes);
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != cudaSuccess) return error;
    limit.store(most, std::memory_order_release);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  std::array<cudaLaunchAttribute, 2> attributes{};
  if (device.clusters) {  // compute capability 9.0, as the early start
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  config.attrs = attributes.data();
  config.numAttrs = !device.clusters ? 0 : shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <typename Type, typename As, bool kWhole>
cudaError_t launch_narrow(const Shape& shape, const GemmArgs& args, const DeviceInfo& info, cudaStream_t stream) {
  static std::array<std::atomic<int64_t>, kMostDevices> allowed{};
  return launch(dual_gemm<Type, As, kWhole>, allowed, shape, args, info, stream);
}

template <typename Type, int kOctets, bool kWhole>
cudaError_t launch_wide(const Shape& shape, const GemmArgs& args, const DeviceInfo& info, cudaStream_t stream) {
  static std::array<std::atomic<int64_t>, kMostDevices> allowed{};
  return launch(wide_gemm<Type, kOctets, kWhole>, allowed, shape, args, info, stream);
}

// Fills in what the plan decides, and launches.
template <typename Type, bool kWhole>
cudaError_t plan_and_launch(const Problem& problem, GemmArgs& args, DeviceInfo& info, cudaStream_t stream) {
  if (problem.batch > kNarrowRows) {
    const WidePlan plan = info.plans.wide(problem, info.device);
    if (plan.row_groups == 0) return cudaErrorInvalidConfiguration;
    args.panels = plan.cluster;
    args.row_warps = plan.row_warps;
    args.k_warps = plan.k_warps;
    args.stages = plan.stages;
    args.stage_bytes = static_cast<int>(plan.stage_bytes);
    const Shape shape{dim3(static_cast<unsigned>(plan.cluster), static_cast<unsigned>(plan.row_groups)),
                      32 * plan.row_warps * plan.k_warps, plan.cluster, plan.shared_bytes};
    return plan.octets == 4 ? launch_wide<Type, 4, kWhole>(shape, args, info, stream)
                            : launch_wide<Type, 8, kWhole>(shape, args, info, stream);
  }
  const LaunchPlan plan = info.plans.narrow(problem, info.device);
  if (plan.groups == 0) return cudaErrorInvalidConfiguration;
  args.panels = plan.cluster;
  args.passes = plan.passes;
  args.cluster_log2 = log2_of(plan.cluster);
  args.passes_log2 = log2_of(plan.passes);
  args.k_log2 = log2_of(plan.k_warps);
  args.row_reciprocal = row_reciprocal(plan.row_warps);
  args.row_warps = plan.row_warps;
  args.k_warps = plan.k_warps;
  args.groups = plan.groups;
  args.rounds = plan.rounds;
  args.stages = plan.stages;
  args.x_stride = static_cast<int>(plan.x_stride);
  args.x_bytes = static_cast<int>(plan.x_bytes);
  args.stage_bytes = static_cast<int>(plan.stage_bytes);
  const Shape shape{dim3(static_cast<unsigned>(plan.cluster), static_cast<unsigned>(plan.groups)),
                    32 * plan.row_warps * plan.k_warps, plan.cluster, plan.shared_bytes};
  const auto run = [&](auto x) { return launch_narrow<Type, decltype(x), kWhole>(shape, args, info, stream); };
  if (plan.gather) return problem.batch == 1 ? run(AsRows<1>{}) : run(AsRows<kGatherRows>{});
  return plan.octets == 1 ? run(AsPlanes<1>{}) : run(AsPlanes<2>{});
}

template <typename Type>
cudaError_t launch_type(const Problem& problem, GemmArgs& args, DeviceInfo& info, cudaStream_t stream) {
  return problem.group_size == kBlockInputs ? plan_and_launch<Type, true>(problem, args, info, stream)
                                            : plan_and_launch<Type, false>(problem, args, info, stream);
}

Problem problem_of(const BaseLayer& base, int64_t m) {
  return {base.rows, base.columns, base.group_size, std::min<int64_t>(m, kFusedRows)};
}

const char* forward(const BaseLayer& base, bool streams_only, const Stream* streams,
                    int64_t stream_count, const void* x, DType x_type, int64_t m, void* y,
                    void* stream) {
  if (x_type != DType::kFloat16 && x_type != DType::kBFloat16) return "x must be float16 or bfloat16";
  if (stream_count > kMostStreams) return "at most 8 streams fit one launch";
  if (base.rows > std::numeric_limits<int32_t>::max()) return "at most 2147483647 output rows";
  const char* wrong = misaligned_operand(base, streams, stream_count, x, y);
  if (wrong != nullptr) return wrong;
  DeviceInfo* info = nullptr;
  cudaError_t error = current_device(&info);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int64_t done = 0; done < m; done += kFusedRows) {
    const Problem problem = problem_of(base, m - done);
    GemmArgs args{};
    args.tiles = base.tiles;
    args.scales = static_cast<const uint16_t*>(base.scales);
    args.x = static_cast<const uint16_t*>(x) + done * base.columns;
    args.y = static_cast<uint16_t*>(y) + done * base.rows;
    args.rows = static_cast<int>(base.rows);
    args.columns = static_cast<int>(base.columns);
    args.group_size = static_cast<int>(base.group_size);
    args.batch = static_cast<int>(problem.batch);
    args.tile_count = static_cast<int>(tile_count(base.rows));
    args.streams_only = streams_only;
    args.bfloat_scales = base.scale_type == DType::kBFloat16;
    args.stream_count = static_cast<int>(stream_count);
    for (int64_t s = 0; s < stream_count; ++s) {
      if (streams[s].value_type != DType::kFloat16) return "stream values must be float16";
      args.streams[s] = {streams[s].slice_ptr, streams[s].columns,
                         static_cast<const uint16_t*>(streams[s].values), streams[s].alpha + done};
    }
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    error = x_type == DType::kFloat16
                ? launch_type<Half>(problem, args, *info, cuda_stream)
                : launch_type<BFloat>(problem, args, *info, cuda_stream);
    if (error == cudaErrorInvalidConfiguration) return "this device has too little shared memory";
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return nullptr;
}

}  // namespace

const char* orth_layer_forward_cuda(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                    const void* x, DType x_type, int64_t m, void* y, void* stream) {
  return forward(base, false, streams, stream_count, x, x_type, m, y, stream);
}

const char* orth_streams_forward_cuda(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                      const void* x, DType x_type, int64_t m, void* y, void* stream) {
  return forward(base, true, streams, stream_count, x, x_type, m, y, stream);
}

const char* orth_dequantize_cuda(const BaseLayer& base, DType w_type, void* w, void* stream) {
  if (w_type != DType::kFloat16 && w_type != DType::kBFloat16) return "w must be float16 or bfloat16";
  if (const char* wrong = misaligned_operand(base, w)) return wrong;
  const dim3 grid(static_cast<unsigned>(ceil_div(base.columns / kTileInputs, kDequantizeColumns)),
                  static_cast<unsigned>(tile_count(base.rows)));
  const auto run = w_type == DType::kFloat16 ? dequantize<Half> : dequantize<BFloat>;
  run<<<grid, kDequantizeThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      base.tiles, static_cast<const uint16_t*>(base.scales), base.scale_type == DType::kBFloat16,
      static_cast<int>(base.rows), static_cast<int>(base.columns), static_cast<int>(base.group_size),
      static_cast<uint16_t*>(w));
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace orth
