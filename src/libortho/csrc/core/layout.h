// Tile arithmetic of the two streams, shared by every kernel; libortho/layout.py is its mirror.
//
// Base tile: 32 output rows x 8 inputs = 32 little-endian 32-bit words. Word r belongs to row
// 32 t + r; its nibble j (bits 4j .. 4j+3, two's complement, -8 .. 7) is the code of input 8 b + j.
//   tiles  [T, K/8, 32] words, T = ceil(N / 32); the codes and scales of rows >= N are 0
//   scales [T, K/group, 32] fp16 or bf16
// One thread reads one row of tiles from end to end: a single sequential stream.
//
// Stream: SELL-16. A slice is 16 output rows; slot s of a slice holds one entry of each of its rows.
//   slice_ptr [ceil(N/16) + 1] first slot of each slice
//   columns   [S, 16] uint16, a pad points at column K (so K <= 65535); pads end a row
//   values    [S, 16], a pad is 0
//
// Packed rows: the rows of a batch that a stream acts on, transposed in chunks of 64, so that the
// loops over a stream's entries run over contiguous rows of the batch.
//   chunk c: [columns, lanes(c)], starting at element 64 * columns * c; unused lanes are 0
#pragma once

#include <cstdint>

namespace orth {

constexpr int64_t kTileRows = 32;
constexpr int64_t kTileInputs = 8;
constexpr int64_t kTileWords = kTileRows;
constexpr int64_t kSliceRows = 16;
constexpr int64_t kChunkRows = 64;
constexpr int64_t kMaxColumns = 65535;

// Internal linkage on purpose: the same function is compiled once per instruction set, and the
// linker must never hand the AVX-512 copy to the baseline code.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t tile_count(int64_t rows) { return ceil_div(rows, kTileRows); }
static inline int64_t slice_count(int64_t rows) { return ceil_div(rows, kSliceRows); }
static inline int64_t chunk_count(int64_t rows) { return ceil_div(rows, kChunkRows); }

// Lanes of chunk `chunk` when `rows` rows are packed: 64, or 16 / 32 / 64 for the last one.
static inline int64_t chunk_lanes(int64_t rows, int64_t chunk) {
  const int64_t left = rows - chunk * kChunkRows;
  if (left > 32) return 64;
  return left > 16 ? 32 : 16;
}

static inline int64_t packed_size(int64_t rows, int64_t columns) {
  return chunk_count(rows) * kChunkRows * columns;
}

}  // namespace orth
