// Vectors without instructions of their own: plain loops over 8 lanes, any CPU, float or double.
#pragma once

#include "../core/layout.h"
#include "../core/numeric.h"

namespace orth {

template <typename Scalar>
struct VectorScalar {
  using T = Scalar;
  static constexpr int kWidth = 8;
  static constexpr DType kType = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;
  static constexpr int kRowVectors(int /*m*/) { return 1; }

  struct Reg {
    T lane[kWidth];
  };
  struct Words {
    uint32_t lane[kWidth];
  };

  static Reg load(const T* data) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = data[i];
    return out;
  }
  static void store(T* data, const Reg& a) {
    for (int i = 0; i < kWidth; ++i) data[i] = a.lane[i];
  }
  static Reg zero() { return broadcast(T(0)); }
  static Reg broadcast(T value) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = value;
    return out;
  }
  static T fma1(T a, T b, T c) { return a * b + c; }
  static Reg fma(const Reg& a, const Reg& b, const Reg& c) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return out;
  }
  static Reg mul(const Reg& a, const Reg& b) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = a.lane[i] * b.lane[i];
    return out;
  }
  static Reg add(const Reg& a, const Reg& b) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = a.lane[i] + b.lane[i];
    return out;
  }
  static T sum(const Reg& a) {
    T total = a.lane[0];
    for (int i = 1; i < kWidth; ++i) total += a.lane[i];
    return total;
  }
  static Reg load_as(const void* data, DType type) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = load_item<T>(data, type, i);
    return out;
  }
  static void store_as(void* data, DType type, const Reg& a) {
    for (int i = 0; i < kWidth; ++i) store_item<T>(data, type, i, a.lane[i]);
  }
  static Words load_words(const uint32_t* data) {
    Words out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = data[i];
    return out;
  }
  static T decode(uint32_t word, int nibble) {
    return static_cast<T>(static_cast<int32_t>(word << (28 - 4 * nibble)) >> 28);
  }
  template <int J>
  static Reg code(const Words& words) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = decode(words.lane[i], J);
    return out;
  }
  static void unpack(uint32_t word, T scale, T* out) {
    for (int j = 0; j < kTileInputs; ++j) out[j] = decode(word, j) * scale;
  }
  static Reg gather(const T* x, const uint16_t* columns) {
    Reg out;
    for (int i = 0; i < kWidth; ++i) out.lane[i] = x[columns[i]];
    return out;
  }
  static void transpose8(const T* const* source, T* out, int64_t ldo) {
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 8; ++j) out[j * ldo + i] = source[i][j];
    }
  }
};

}  // namespace orth
