// How the tiles of layout.h become operands of the tensor-core product mma.m16n8k16, by index alone.
//
// A step is 32 output rows x 32 inputs: four tile columns, 128 consecutive words. Lane l, with
// g = l / 4 and t = l % 4, takes four consecutive words: rows 4g .. 4g+3 of tile column t, inputs
// 8t .. 8t+7. Pair p (0 .. 3) of a word is its nibbles p and
// p + 4, the two that one mask leaves in the halves of a register.
//
// The product's rows and inputs are free to stand for any: product row g of block b is tile row
// 4g + 2b, product row g + 8 is tile row 4g + 2b + 1 (b = 0, 1); of the two products that a step
// needs, product s takes as its inputs 2t, 2t+1 the pair 2s, and as 2t+8, 2t+9 the pair 2s + 1. The
// same thread holds the same t of the other operand, so x needs no other order than its own.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "layout.h"

namespace orth {

constexpr int kStepInputs = 32;
constexpr int kBlockInputs = 128;  // what a warp takes at a time; a multiple of every group size
constexpr int kStepWords = kStepInputs / 8 * 32;
constexpr int kBlockSteps = kBlockInputs / kStepInputs;

// A step in shared memory is 32 chunks of four words, the tile columns' eight each turned round
// against one another: lanes that copy a step in by whole lines, and lanes that take their four words
// out of it, both meet every bank once. Place of the chunk of rows 4g .. 4g+3, tile column t.
ORTH_HD constexpr int chunk_place(int g, int t) { return 8 * t + (g ^ (2 * t)); }

// Tile row of product row `row` (0 .. 15) of block `block`.
ORTH_HD constexpr int tile_row(int block, int row) { return 4 * (row % 8) + 2 * block + row / 8; }

// Input, within its step, of input `slot` (0 .. 15) of product `product`.
ORTH_HD constexpr int step_input(int product, int slot) {
  const int t = slot % 8 / 2, pair = 2 * product + slot / 8;
  return 8 * t + pair + 4 * (slot % 2);
}

// Transposed rows of x: for each octet of the batch a plane of 16-byte units, one for each input,
// 8 rows of the batch in a unit. Neighbouring units are exchanged so that neither the writes of a
// transposition nor the reads of a step meet in one bank.
ORTH_HD constexpr int unit_of_input(int input) { return input ^ ((input >> 3) & 7); }

// Where input `input` lies when a product's operand is 16 units one after another, as the tensor cores
// of Hopper read it: unit 16 s + slot of a step is what product s takes in that slot.
ORTH_HD constexpr int product_unit(int input) {
  return (input & ~31) | (input & 3) << 3 | (input >> 3 & 3) << 1 | (input >> 2 & 1);
}

// Which input of a step lane `lane` of ldmatrix.x4.trans points at: matrix lane / 8 is half
// (lane / 8) % 2 of product lane / 16.
ORTH_HD constexpr int ldmatrix_input(int lane) {
  return step_input(lane / 16, (lane / 8) % 2 * 8 + lane % 8);
}

}  // namespace orth
