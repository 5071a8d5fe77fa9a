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

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define VLMFLOW_UNROLL _Pragma("GCC unroll 8")

namespace vlmflow {

constexpr int64_t PANEL = 64;        // outputs
constexpr int64_t STEP_BYTES = 256;  // of weights
constexpr int64_t STEPS = 512;       // of a stretch of weights: 128 KB, which the L2 cache keeps
constexpr int64_t ROWS = 6;          // of a tile: its 24 sums and 4 weights fill the registers
constexpr int64_t TILE_BYTES = ROWS * STEP_BYTES;

// Add to a tile's sums [ROWS][PANEL], 4 bytes each, what a stretch of steps gives.
//
// x           rows of 4 bytes a step, `x_bytes` apart
// next        what is computed after this; PREFETCH of its cache lines are asked for in each step,
//             since otherwise memory waits for multiplication, and multiplication for memory
template <bool IS_INT8, int NUM_ROWS, int PREFETCH>
static void add_steps(const uint8_t* x, int64_t x_bytes, const uint8_t* weights, int64_t steps,
                      const uint8_t* next, char* sums, bool is_first) {
    __m512i sum[NUM_ROWS][4];
    VLMFLOW_UNROLL for (int i = 0; i < NUM_ROWS; ++i) {
        VLMFLOW_UNROLL for (int j = 0; j < 4; ++j) {
            sum[i][j] = is_first ? _mm512_setzero_si512()
                                 : _mm512_load_si512(sums + i * STEP_BYTES + j * 64);
        }
    }
    for (int64_t step = 0; step < steps; ++step) {
        __m512i w[4];
        VLMFLOW_UNROLL for (int j = 0; j < 4; ++j) {
            w[j] = _mm512_loadu_si512(weights + step * STEP_BYTES + j * 64);
        }
        VLMFLOW_UNROLL for (int p = 0; p < PREFETCH; ++p) {
            _mm_prefetch((const char*)next + (step * PREFETCH + p) * 64, _MM_HINT_T1);
        }
        VLMFLOW_UNROLL for (int i = 0; i < NUM_ROWS; ++i) {
            int32_t bits;
            memcpy(&bits, x + i * x_bytes + step * 4, 4);
            const __m512i all = _mm512_set1_epi32(bits);
            VLMFLOW_UNROLL for (int j = 0; j < 4; ++j) {
                if (IS_INT8) {
                    sum[i][j] = _mm512_dpbusd_epi32(sum[i][j], w[j], all);
                } else {
                    sum[i][j] = (__m512i)_mm512_dpbf16_ps((__m512)sum[i][j], (__m512bh)w[j],
                                                          (__m512bh)all);
                }
            }
        }
    }
    VLMFLOW_UNROLL for (int i = 0; i < NUM_ROWS; ++i) {
        VLMFLOW_UNROLL for (int j = 0; j < 4; ++j) {
            _mm512_store_si512(sums + i * STEP_BYTES + j * 64, sum[i][j]);
        }
    }
}

template <bool IS_INT8, int PREFETCH>
static void add_steps_of(int64_t num_rows, const uint8_t* x, int64_t x_bytes,
                         const uint8_t* weights, int64_t steps, const uint8_t* next, char* sums,
                         bool is_first) {
    switch (num_rows) {
#define VLMFLOW_CASE(N)                                                                         \
    case N:                                                                                     \
        add_steps<IS_INT8, N, PREFETCH>(x, x_bytes, weights, steps, next, sums, is_first);      \
        break;
        VLMFLOW_CASE(1)
        VLMFLOW_CASE(2)
        VLMFLOW_CASE(3)
        VLMFLOW_CASE(4)
        VLMFLOW_CASE(5)
        VLMFLOW_CASE(6)
#undef VLMFLOW_CASE
    }
}

// The tile `index` of a stretch's `count`. Its lines are asked for by the first four tiles at most.
template <bool IS_INT8>
static void add_tile(int64_t index, int64_t count, int64_t num_rows, const uint8_t* x,
                     int64_t x_bytes, const uint8_t* weights, int64_t steps, char* sums,
                     bool is_first) {
    const uint8_t* next = weights + steps * STEP_BYTES;
    if (count == 1) {
        add_steps_of<IS_INT8, 4>(num_rows, x, x_bytes, weights, steps, next, sums, is_first);
    } else if (count < 4 && index < 2) {
        next += index * steps * 2 * 64;
        add_steps_of<IS_INT8, 2>(num_rows, x, x_bytes, weights, steps, next, sums, is_first);
    } else if (count >= 4 && index < 4) {
        next += index * steps * 64;
        add_steps_of<IS_INT8, 1>(num_rows, x, x_bytes, weights, steps, next, sums, is_first);
    } else {
        add_steps_of<IS_INT8, 0>(num_rows, x, x_bytes, weights, steps, next, sums, is_first);
    }
}

}  // namespace vlmflow
