// The alignment that the kernels need, as they copy operands into shared memory and store results.
#pragma once

#include <cstdio>

#include "../core/layer.h"

namespace orth {

constexpr uintptr_t kTilesAlignment = 16;   // copied 16 bytes at a time, as the three below
constexpr uintptr_t kXAlignment = 16;
constexpr uintptr_t kEntriesAlignment = 16;  // columns and values of a stream
constexpr uintptr_t kWeightsAlignment = 16;  // w, stored 16 bytes at a time
constexpr uintptr_t kScalesAlignment = 8;    // copied 8 bytes at a time
constexpr uintptr_t kYAlignment = 8;         // stored 8 bytes at a time where rows are a multiple of 4
constexpr uintptr_t kWordAlignment = 4;      // slice_ptr and alpha, item by item

// Null, or what is wrong with the address of `name`; the text is this thread's until its next call.
inline const char* misaligned(const void* pointer, uintptr_t bytes, const char* name, int64_t stream = -1) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(pointer) % bytes;
  if (past == 0) return nullptr;
  thread_local char text[160];
  char where[32] = "";
  if (stream >= 0) std::snprintf(where, sizeof where, " of stream %d", static_cast<int>(stream));
  std::snprintf(text, sizeof text,
                "%s%s: expected an address that is a multiple of %d, found one %d past it; clone the tensor", name,
                where, static_cast<int>(bytes), static_cast<int>(past));
  return text;
}

inline const char* misaligned_base(const BaseLayer& base) {
  const char* error = misaligned(base.tiles, kTilesAlignment, "tiles");
  return error != nullptr ? error : misaligned(base.scales, kScalesAlignment, "scales");
}

// Of the operands of a dequantisation, the first that is wrong.
inline const char* misaligned_operand(const BaseLayer& base, const void* w) {
  const char* error = misaligned_base(base);
  return error != nullptr ? error : misaligned(w, kWeightsAlignment, "w");
}

// Of all operands of a forward, the first that is wrong.
inline const char* misaligned_operand(const BaseLayer& base, const Stream* streams, int64_t stream_count,
                                      const void* x, const void* y) {
  const char* error = misaligned_base(base);
  if (error == nullptr) error = misaligned(x, kXAlignment, "x");
  if (error == nullptr) error = misaligned(y, kYAlignment, "y");
  for (int64_t s = 0; s < stream_count && error == nullptr; ++s) {
    error = misaligned(streams[s].slice_ptr, kWordAlignment, "slice_ptr", s);
    if (error == nullptr) error = misaligned(streams[s].columns, kEntriesAlignment, "columns", s);
    if (error == nullptr) error = misaligned(streams[s].values, kEntriesAlignment, "values", s);
    if (error == nullptr) error = misaligned(streams[s].alpha, kWordAlignment, "alpha", s);
  }
  return error;
}

}  // namespace orth
