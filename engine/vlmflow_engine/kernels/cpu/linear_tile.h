// Tiles of a linear layer over packed weights, in bfloat16 and in 8 bits. Needs AVX512-BF16 and VNNI.
//
// Weights lie in panels of 64 outputs. Within one, step by step, stand for each output the 2
// bfloat16 or the 4 bytes that one instruction multiplies:
//
//     [outputs / 64][inputs / 2][64][2] bfloat16           [outputs / 64][inputs / 4][64][4] uint8
//
// So a step is 256 bytes in both, and what is computed next lies behind what is computed now.
//
// The instruction for bytes multiplies unsigned by signed ones. Weights are the unsigned ones,
// stored with 128 added; what that adds to every output of a row is 128 times the row's sum.

#pragma once

#include <cstdint>

namespace vlmflow {

constexpr int64_t PANEL = 64;        // outputs
constexpr int64_t STEP_BYTES = 256;  // of weights
constexpr int64_t STEPS = 512;       // of a stretch of weights: 128 KB, which the L2 cache keeps
constexpr int64_t ROWS = 6;          // of a tile: its 24 sums and 4 weights fill the registers
constexpr int64_t TILE_BYTES = ROWS * STEP_BYTES;

// Add to the sums of a tile what a stretch of steps gives.
//
// index, count  of the stretch's tiles; the first few ask for the weights that come `next`
// num_rows      1 to ROWS
// x             rows of 4 bytes a step, `x_bytes` apart
// sums          [ROWS][PANEL], 4 bytes each, aligned; what they hold counts unless `is_first`
template <bool IS_INT8>
void add_tile(int64_t index, int64_t count, int64_t num_rows, const uint8_t* x, int64_t x_bytes,
              const uint8_t* weights, int64_t steps, const uint8_t* next, char* sums,
              bool is_first);

}  // namespace vlmflow
