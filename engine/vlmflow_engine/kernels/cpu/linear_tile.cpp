// The innermost loop of linear layers. In a unit of its own: under `#pragma GCC target`, as the
// others have it, GCC 12 writes every sum to memory in each step, and takes 2.3 times as long.

#include "linear_tile.h"

#include "levels.h"

#if VLMFLOW_X86

// Not inlined: then sums are copied from register to register.
#define VLMFLOW_TILE \
    __attribute__((noinline, target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")))
#define VLMFLOW_UNROLL _Pragma("GCC unroll 8")

namespace vlmflow {
namespace {

// Add to a tile's sums [ROWS][PANEL], 4 bytes each, what a stretch of steps gives.
//
// x           rows of 4 bytes a step, `x_bytes` apart
// next        what is computed after this; PREFETCH of its cache lines are asked for in each step,
//             since otherwise memory waits for multiplication, and multiplication for memory
template <bool IS_INT8, int NUM_ROWS, int PREFETCH>
VLMFLOW_TILE void add_steps(const uint8_t* x, int64_t x_bytes, const uint8_t* weights,
                            int64_t steps, const uint8_t* next, char* sums, bool is_first) {
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
void add_steps_of(int64_t num_rows, const uint8_t* x, int64_t x_bytes, const uint8_t* weights,
                  int64_t steps, const uint8_t* next, char* sums, bool is_first) {
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

}  // namespace

// The weights that come next are asked for by the first four tiles at most.
template <bool IS_INT8>
void add_tile(int64_t index, int64_t count, int64_t num_rows, const uint8_t* x, int64_t x_bytes,
              const uint8_t* weights, int64_t steps, const uint8_t* next, char* sums,
              bool is_first) {
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

template void add_tile<false>(int64_t, int64_t, int64_t, const uint8_t*, int64_t, const uint8_t*,
                              int64_t, const uint8_t*, char*, bool);
template void add_tile<true>(int64_t, int64_t, int64_t, const uint8_t*, int64_t, const uint8_t*,
                             int64_t, const uint8_t*, char*, bool);

}  // namespace vlmflow

#endif
