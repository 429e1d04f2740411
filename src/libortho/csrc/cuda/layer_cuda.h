// The dual-stream linear layer on a GPU, without torch. The layouts are those of layout.h; every
// pointer is device memory and aligned to 16 bytes. Nothing here allocates, synchronises or reads
// alpha on the host: a captured graph replays with whatever alpha then holds.
//
// Launches of one stream overlap (programmatic dependent launch, compute capability 9.0): weights are
// fetched while the kernel before still runs. Whoever writes a base on the device synchronises before
// the first forward that reads it.
#pragma once

#include <cstdint>

#include "../core/layer.h"

namespace orth {

struct CudaWorkspace {
  // orth_cuda_counters(rows) ints, 0 before the first call; every call leaves them 0. Calls that may
  // run at the same time (other streams) need counters of their own.
  int32_t* counters;
  // orth_cuda_parts_bytes(...) bytes, no initial value.
  void* parts;
};

int64_t orth_cuda_counters(int64_t rows);

// For the current device. -1: it cannot be asked.
int64_t orth_cuda_parts_bytes(const BaseLayer& base, int64_t m);

// y [M, N] = the whole layer, for any M. x and y are both fp16 or both bf16, stream values fp16, at
// most 8 streams. `stream` is a cudaStream_t. Returns null, or what went wrong.
const char* orth_layer_forward_cuda(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                    const void* x, DType x_type, int64_t m, void* y,
                                    const CudaWorkspace& workspace, void* stream);

// The parts from which a caller with a fast matmul of its own composes large batches.

// w [N, K] in w_type (fp16 or bf16), each weight code * scale rounded once.
const char* orth_dequantize_cuda(const BaseLayer& base, DType w_type, void* w, void* stream);

// y [M, N] += the streams, on the rows that open any; base gives the shapes alone.
const char* orth_streams_forward_cuda(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                      const void* x, DType x_type, int64_t m, void* y,
                                      const CudaWorkspace& workspace, void* stream);

}  // namespace orth
