// The dual-stream linear layer on a GPU, without torch. The layouts are those of layout.h; every pointer
// is device memory, aligned as alignment.h says, and refused where it is not. Nothing here allocates,
// synchronises or reads alpha on the host: a captured graph replays with whatever alpha then holds. Any
// thread may call; what is remembered of a device, its properties and the plans of up to 2048 shapes, lies
// in static memory.
//
// Launches of one stream overlap (programmatic dependent launch, compute capability 9.0): weights are
// fetched while the kernel before still runs. Whoever writes a base on the device synchronises before
// the first forward that reads it.
#pragma once

#include <cstdint>

#include "../core/layer.h"

namespace orth {

// y [M, N] = the whole layer, for any M. x and y are both fp16 or both bf16, stream values fp16, at
// most 8 streams. `stream` is a cudaStream_t. Returns null, or what went wrong.
const char* orth_layer_forward_cuda(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                    const void* x, DType x_type, int64_t m, void* y, void* stream);

// The parts from which a caller with a fast matmul of its own composes large batches.

// w [N, K] in w_type (fp16 or bf16), each weight code * scale rounded once.
const char* orth_dequantize_cuda(const BaseLayer& base, DType w_type, void* w, void* stream);

// y [M, N] += the streams, on the rows that open any; base gives the shapes alone.
const char* orth_streams_forward_cuda(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                      const void* x, DType x_type, int64_t m, void* y, void* stream);

}  // namespace orth
