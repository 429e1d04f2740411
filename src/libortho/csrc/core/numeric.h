// Storage types and their exact or round-to-nearest-even conversions, in plain integer code.
#pragma once

#include <cstdint>
#include <cstring>

namespace orth {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

static inline int64_t item_size(DType type) {
  switch (type) {
    case DType::kFloat64: return 8;
    case DType::kFloat32: return 4;
    default: return 2;
  }
}

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7fffu) << 13;
  if ((half & 0x7c00u) == 0x7c00u) {  // Inf, NaN (quieted, as the hardware does)
    const uint32_t quiet = (half & 0x03ffu) != 0 ? 0x00400000u : 0u;
    return bits_to_float(sign | rest | 0x7f800000u | quiet);
  }
  // Read with the half's exponent bias, 2^112 too small: exact, subnormals included.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 0x1p112f));
}

static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x03ffu));
  }
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // >= 65520
  if (magnitude < 0x38800000u) {  // subnormal half: let one float addition round it
    const uint32_t rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t even = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0x0fffu + even) >> 13));
}

static inline float bfloat16_to_float(uint16_t value) {
  return bits_to_float(static_cast<uint32_t>(value) << 16);
}

static inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Element `index` of an array of `type`, as T (float or double).
template <typename T>
static inline T load_item(const void* data, DType type, int64_t index) {
  switch (type) {
    case DType::kFloat64: return static_cast<T>(static_cast<const double*>(data)[index]);
    case DType::kFloat32: return static_cast<T>(static_cast<const float*>(data)[index]);
    case DType::kFloat16: return static_cast<T>(half_to_float(static_cast<const uint16_t*>(data)[index]));
    default: return static_cast<T>(bfloat16_to_float(static_cast<const uint16_t*>(data)[index]));
  }
}

template <typename T>
static inline void store_item(void* data, DType type, int64_t index, T value) {
  switch (type) {
    case DType::kFloat64: static_cast<double*>(data)[index] = static_cast<double>(value); break;
    case DType::kFloat32: static_cast<float*>(data)[index] = static_cast<float>(value); break;
    case DType::kFloat16:
      static_cast<uint16_t*>(data)[index] = float_to_half(static_cast<float>(value));
      break;
    case DType::kBFloat16:
      static_cast<uint16_t*>(data)[index] = float_to_bfloat16(static_cast<float>(value));
      break;
  }
}

}  // namespace orth
