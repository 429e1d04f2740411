// The CPU kernels over random layers, to be built with -fsanitize=address,undefined. Arrays are
// exactly as long as layout.h says, so that a read beyond one is caught; every result is compared
// with sums in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "core/layer.h"
#include "core/layout.h"
#include "core/numeric.h"

namespace {

using namespace orth;

std::mt19937 random_bits(1);
int below(int count) { return static_cast<int>(random_bits() % static_cast<unsigned>(count)); }
template <typename T>
T one_of(std::initializer_list<T> all) {
  return all.begin()[below(static_cast<int>(all.size()))];
}

// A heap block of exactly this many items: a vector may hold more than it says.
template <typename T>
std::unique_ptr<T[]> block(const std::vector<T>& items) {
  std::unique_ptr<T[]> out(new T[items.size()]);
  std::copy(items.begin(), items.end(), out.get());
  return out;
}

struct Layer {
  int64_t n, k, group;
  std::vector<uint32_t> tiles;
  std::vector<uint16_t> scales;
  std::vector<int32_t> slice_ptr{0};
  std::vector<uint16_t> columns, values;
  std::vector<double> base, ortho;
};

Layer random_layer() {
  Layer layer;
  layer.group = one_of<int64_t>({32, 64, 128});
  layer.n = 1 + below(100);
  layer.k = layer.group * (1 + below(below(8) == 0 ? 20 : 3));
  const int64_t n = layer.n, k = layer.k, tiles = tile_count(n), groups = k / layer.group;
  layer.tiles.assign(static_cast<size_t>(tiles * k / kTileInputs * kTileWords), 0);
  layer.scales.assign(static_cast<size_t>(tiles * groups * kTileRows), 0);
  layer.base.assign(static_cast<size_t>(n * k), 0);
  layer.ortho.assign(static_cast<size_t>(n * k), 0);
  for (int64_t row = 0; row < n; ++row) {
    const int64_t tile = row / kTileRows, lane = row % kTileRows;
    for (int64_t g = 0; g < groups; ++g) {
      layer.scales[(tile * groups + g) * kTileRows + lane] = float_to_half(1e-3f * (1 + below(9)));
    }
    for (int64_t c = 0; c < k; ++c) {
      const int code = below(16) - 8;
      layer.tiles[(tile * k / kTileInputs + c / kTileInputs) * kTileWords + lane] |=
          (static_cast<uint32_t>(code) & 0xfu) << (4 * (c % kTileInputs));
      const uint16_t scale = layer.scales[(tile * groups + c / layer.group) * kTileRows + lane];
      layer.base[row * k + c] = code * static_cast<double>(half_to_float(scale));
    }
  }
  const int percent = one_of({0, 1, 20, 100});
  for (int64_t slice = 0; slice < slice_count(n); ++slice) {
    std::vector<std::vector<int>> rows(kSliceRows);
    size_t widest = 0;
    for (int64_t r = 0; r < kSliceRows && slice * kSliceRows + r < n; ++r) {
      for (int c = 0; c < k; ++c) {
        if (below(100) < percent) rows[r].push_back(c);
      }
      widest = std::max(widest, rows[r].size());
    }
    for (size_t slot = 0; slot < widest; ++slot) {
      for (int64_t r = 0; r < kSliceRows; ++r) {
        const bool there = slot < rows[r].size();
        const uint16_t value = there ? float_to_half(0.01f * (below(200) - 100)) : 0;
        layer.columns.push_back(static_cast<uint16_t>(there ? rows[r][slot] : k));
        layer.values.push_back(value);
        if (there) {
          layer.ortho[(slice * kSliceRows + r) * k + rows[r][slot]] = half_to_float(value);
        }
      }
    }
    layer.slice_ptr.push_back(layer.slice_ptr.back() + static_cast<int32_t>(widest));
  }
  return layer;
}

bool agrees(const Layer& layer, int64_t m, DType type) {
  const int64_t n = layer.n, k = layer.k;
  const auto tiles = block(layer.tiles);
  const auto scales = block(layer.scales);
  const auto slice_ptr = block(layer.slice_ptr);
  const auto columns = block(layer.columns), values = block(layer.values);
  std::vector<float> alphas;
  for (int64_t i = 0; i < m; ++i) alphas.push_back(one_of({0.0f, 0.5f, 1.0f}));
  const auto alpha = block(alphas);
  const std::unique_ptr<char[]> x(new char[m * k * item_size(type)]);
  const std::unique_ptr<char[]> y(new char[m * n * item_size(type)]);
  for (int64_t i = 0; i < m * k; ++i) {
    store_item<double>(x.get(), type, i, 1e-3 * (below(2000) - 1000));
  }
  const BaseLayer base{tiles.get(), scales.get(), DType::kFloat16, n, k, layer.group};
  const Stream stream{slice_ptr.get(), columns.get(), values.get(), DType::kFloat16, alpha.get()};
  orth_layer_forward(base, &stream, 1, x.get(), type, m, y.get(), nullptr);
  const double unit = type == DType::kBFloat16 ? 0x1p-8 : type == DType::kFloat16 ? 0x1p-11 : 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t row = 0; row < n; ++row) {
      double exact = 0, size = 0;
      for (int64_t c = 0; c < k; ++c) {
        const double weight =
            layer.base[row * k + c] + static_cast<double>(alpha[i]) * layer.ortho[row * k + c];
        const double input = load_item<double>(x.get(), type, i * k + c);
        exact += weight * input;
        size += (std::abs(layer.base[row * k + c]) + std::abs(layer.ortho[row * k + c])) *
                std::abs(input);
      }
      const double found = load_item<double>(y.get(), type, i * n + row);
      const double bound = (2.0 * static_cast<double>(k) + 8) * 0x1p-23 * size +
                           unit * std::abs(exact) + 1e-7;
      if (!(std::abs(found - exact) <= bound)) {
        std::printf("N %ld K %ld M %ld type %d: row %ld, output %ld: %g, wanted %g\n", n, k, m,
                    static_cast<int>(type), i, row, found, exact);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 40;
  for (int round = 0; round < rounds; ++round) {
    const Layer layer = random_layer();
    const DType type = one_of({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64});
    const int64_t m = one_of<int64_t>({0, 1, 2, 3, 4, 7, 12, 13, 24, 25, 70, 130});
    if (!agrees(layer, m, type)) return 1;
  }
  std::printf("%d layers\n", rounds);
  return 0;
}
