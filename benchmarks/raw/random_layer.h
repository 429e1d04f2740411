// A random layer on the host in the kernels' layouts, and single rows of its result in float64.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/numeric.h"

namespace bench {

// xorshift128+ (Vigna 2017).
class Random {
 public:
  explicit Random(uint64_t seed) : a_(seed * 0x9e3779b97f4a7c15ull + 1), b_(~seed * 0xbf58476d1ce4e5b9ull) {
    for (int i = 0; i < 16; ++i) bits();
  }
  uint64_t bits() {
    uint64_t x = a_;
    const uint64_t y = b_;
    a_ = y;
    x ^= x << 23;
    b_ = x ^ y ^ (x >> 17) ^ (y >> 26);
    return b_ + y;
  }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  double normal() { return uniform() + uniform() + uniform() + uniform() - 2.0; }

 private:
  uint64_t a_, b_;
};

struct HostStream {
  std::vector<int32_t> slice_ptr;
  std::vector<uint16_t> columns, values;
  int64_t entries = 0;
};

struct HostLayer {
  int64_t rows, columns, group_size;
  orth::DType scale_type = orth::DType::kFloat16;
  std::vector<uint32_t> tiles;
  std::vector<uint16_t> scales;

  HostLayer(int64_t n, int64_t k, int64_t group, uint64_t seed) : rows(n), columns(k), group_size(group) {
    Random random(seed);
    const int64_t count = orth::tile_count(n);
    tiles.assign(static_cast<size_t>(count * k / 8 * 32), 0);
    scales.assign(static_cast<size_t>(count * (k / group) * 32), 0);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t r = 0; r < 32 && t * 32 + r < n; ++r) {
        for (int64_t b = 0; b < k / 8; ++b) {
          tiles[static_cast<size_t>((t * (k / 8) + b) * 32 + r)] = static_cast<uint32_t>(random.bits() >> 20);
        }
        for (int64_t g = 0; g < k / group; ++g) {
          scales[static_cast<size_t>((t * (k / group) + g) * 32 + r)] =
              orth::float_to_half(static_cast<float>(0.002 + 0.004 * random.uniform()));
        }
      }
    }
  }

  double weight(int64_t n, int64_t k) const {
    const int64_t t = n / 32, r = n % 32;
    const uint32_t word = tiles[static_cast<size_t>((t * (columns / 8) + k / 8) * 32 + r)];
    const int32_t code = static_cast<int32_t>(word << (28 - 4 * (k % 8))) >> 28;
    const size_t at = static_cast<size_t>((t * (columns / group_size) + k / group_size) * 32 + r);
    return code * static_cast<double>(orth::half_to_float(scales[at]));
  }

  HostStream stream(double density, uint64_t seed) const {
    Random random(seed);
    HostStream out;
    const int64_t slices = orth::slice_count(rows);
    out.slice_ptr.push_back(0);
    std::vector<std::vector<uint16_t>> lists(16);
    for (int64_t s = 0; s < slices; ++s) {
      size_t widest = 0;
      for (int64_t r = 0; r < 16; ++r) {
        auto& list = lists[static_cast<size_t>(r)];
        list.clear();
        if (s * 16 + r >= rows) continue;
        // Gaps between chosen columns are geometric.
        double at = -1;
        while (density > 0) {
          at += density >= 1 ? 1 : 1 + std::floor(std::log(1 - random.uniform()) / std::log(1 - density));
          if (at >= static_cast<double>(columns)) break;
          list.push_back(static_cast<uint16_t>(at));
        }
        widest = list.size() > widest ? list.size() : widest;
        out.entries += static_cast<int64_t>(list.size());
      }
      for (size_t slot = 0; slot < widest; ++slot) {
        for (const auto& list : lists) {
          const bool real = slot < list.size();
          out.columns.push_back(real ? list[slot] : static_cast<uint16_t>(columns));
          out.values.push_back(real ? orth::float_to_half(static_cast<float>(0.02 * random.normal())) : uint16_t{0});
        }
      }
      out.slice_ptr.push_back(out.slice_ptr.back() + static_cast<int32_t>(widest));
    }
    return out;
  }
};

// Row n of x W^T, exactly, and the sum of the magnitudes of its terms.
struct Exact {
  double value = 0, size = 0;
};

inline Exact base_dot(const HostLayer& layer, const double* x, int64_t n) {
  Exact out;
  for (int64_t k = 0; k < layer.columns; ++k) {
    const double term = x[k] * layer.weight(n, k);
    out.value += term;
    out.size += std::fabs(term);
  }
  return out;
}

inline Exact stream_dot(const HostLayer& layer, const HostStream& stream, const double* x, int64_t n) {
  Exact out;
  const int64_t slice = n / 16;
  for (int64_t slot = stream.slice_ptr[static_cast<size_t>(slice)];
       slot < stream.slice_ptr[static_cast<size_t>(slice) + 1]; ++slot) {
    const size_t at = static_cast<size_t>(slot * 16 + n % 16);
    if (stream.columns[at] >= layer.columns) continue;
    const double term = x[stream.columns[at]] * static_cast<double>(orth::half_to_float(stream.values[at]));
    out.value += term;
    out.size += std::fabs(term);
  }
  return out;
}

}  // namespace bench
