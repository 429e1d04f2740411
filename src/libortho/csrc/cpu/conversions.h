// Arrays of one storage type to and from arrays of V::T.
#pragma once

#include "../core/layout.h"
#include "kernels.h"

namespace orth {

template <typename V>
struct Conversions {
  using T = typename V::T;
  using Reg = typename V::Reg;

  static void load(const void* data, DType type, int64_t count, T* out) {
    const int64_t whole = count - count % V::kWidth;
    const char* bytes = static_cast<const char*>(data);
    for (int64_t i = 0; i < whole; i += V::kWidth) {
      V::store(out + i, V::load_as(bytes + i * item_size(type), type));
    }
    for (int64_t i = whole; i < count; ++i) out[i] = load_item<T>(data, type, i);
  }

  static void store(const T* in, DType type, int64_t count, void* data) {
    const int64_t whole = count - count % V::kWidth;
    char* bytes = static_cast<char*>(data);
    for (int64_t i = 0; i < whole; i += V::kWidth) {
      V::store_as(bytes + i * item_size(type), type, V::load(in + i));
    }
    for (int64_t i = whole; i < count; ++i) store_item<T>(data, type, i, in[i]);
  }
};

}  // namespace orth
