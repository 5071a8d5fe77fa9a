// Linear layers over packed weights: y = x W^T + b in bfloat16, with W in bfloat16 or in 8 bits.
//
// Against oneDNN's prepacked layers this saves the making of a primitive for each new number of
// rows, and overlaps the reading of weights with the multiplication. A row's output does not
// depend on the others: its sum runs over the inputs in their order, always.

// GCC 12 takes the undefined registers of its own intrinsics for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "levels.h"
#include "parallel.h"

#if VLMFLOW_X86

#include <cpuid.h>

#include "linear_tile.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")

namespace vlmflow {
namespace {

constexpr int64_t CHUNK = 240;           // rows that go through a panel together
constexpr int64_t ITEMS_PER_THREAD = 8;  // so that a thread that was held up costs little

struct Linear {
    const uint8_t* x;  // rows as the instruction takes them
    int64_t x_bytes;   // from one row to the next
    const uint8_t* weights;
    const uint16_t* bias;  // bfloat16, or null
    uint16_t* y;           // bfloat16 [rows, outputs]; gated, the matrix has twice as many
    int64_t rows, outputs, steps;
    // In 8 bits.
    const float* x_scales;   // by row
    const int32_t* x_sums;   // by row, times 128
    const float* w_scales;   // by output
    int64_t chunks, panels_per_item;
};

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

inline __mmask16 first_lanes(int64_t count) {
    return count >= 16 ? 0xFFFF : (__mmask16)((1u << count) - 1);
}

inline __m512 load_bf16(__mmask16 mask, const uint16_t* p) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// What 16 columns have in common: of all outputs, which end behind the last of them.
template <bool IS_INT8>
struct Columns {
    __mmask16 mask;
    __m512 bias, scale;

    Columns(const Linear& a, int64_t column, int64_t end) {
        mask = first_lanes(end - column);
        bias = a.bias ? load_bf16(mask, a.bias + column) : _mm512_setzero_ps();
        scale = IS_INT8 ? _mm512_maskz_loadu_ps(mask, a.w_scales + column) : _mm512_setzero_ps();
    }

    __m512 outputs(const Linear& a, const char* sums, int64_t row) const {
        const __m512i sum = _mm512_load_si512(sums);
        if (!IS_INT8) return _mm512_add_ps((__m512)sum, bias);
        const __m512i whole = _mm512_sub_epi32(sum, _mm512_set1_epi32(a.x_sums[row]));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(a.x_scales[row]));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), both, bias);
    }
};

// x / (1 + e^-x)
inline __m512 silu(__m512 x) {
    const __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT);
    const __m512 r = _mm512_sub_ps(power, whole);
    // 2^r to 1e-7, for |r| <= 1/2.
    __m512 p = _mm512_set1_ps(1.326472721e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.671512650e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550733743e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402224209e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931469776e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(x, _mm512_add_ps(one, _mm512_scalef_ps(p, whole)));
}

// Turn a tile's sums into outputs from `column` on: gated, those of both halves of the matrix.
template <bool IS_INT8, bool IS_GATED>
void finish(const Linear& a, const char* sums, const char* up_sums, int64_t row, int64_t num_rows,
            int64_t column) {
    for (int j = 0; j < 4 && column < a.outputs; ++j, column += 16) {
        const Columns<IS_INT8> columns(a, column, a.outputs);
        const int64_t up_column = IS_GATED ? a.outputs + column : column;
        const Columns<IS_INT8> up_columns(a, up_column, up_column + 16);
        for (int64_t i = 0; i < num_rows; ++i) {
            const int64_t place = i * STEP_BYTES + j * 64;
            __m512 y = columns.outputs(a, sums + place, row + i);
            if (IS_GATED) {
                y = _mm512_mul_ps(silu(y), up_columns.outputs(a, up_sums + place, row + i));
            }
            uint16_t* target = a.y + (row + i) * a.outputs + column;
            _mm256_mask_storeu_epi16(target, columns.mask, (__m256i)_mm512_cvtneps_pbh(y));
        }
    }
}

// Some panels for some rows; gated, with each panel of the first half that of the second.
template <bool IS_INT8, bool IS_GATED>
void compute_item(const void* context, int64_t item) {
    constexpr int64_t HALVES = IS_GATED ? 2 : 1, SUMS = (CHUNK / ROWS) * TILE_BYTES;
    const Linear& a = *static_cast<const Linear*>(context);
    alignas(64) char sums[HALVES * SUMS];
    const int64_t rows_each = div_up(a.rows, a.chunks);
    const int64_t begin = (item % a.chunks) * rows_each;
    const int64_t end = lower(a.rows, begin + rows_each);
    const int64_t tiles = div_up(end - begin, ROWS);
    const int64_t panels = div_up(a.outputs, PANEL), panel_bytes = a.steps * STEP_BYTES;
    const int64_t first = (item / a.chunks) * a.panels_per_item;
    const int64_t last = lower(panels, first + a.panels_per_item);
    for (int64_t place = first * HALVES; place < last * HALVES; ++place) {
        const int64_t panel = place / HALVES, half = place % HALVES, after = place + 1;
        const uint8_t* weights = a.weights + (half * panels + panel) * panel_bytes;
        const uint8_t* next_panel =
            a.weights + (after % HALVES * panels + after / HALVES) * panel_bytes;
        for (int64_t step = 0; step < a.steps; step += STEPS, weights += STEPS * STEP_BYTES) {
            const int64_t steps = lower(STEPS, a.steps - step);
            const bool is_last = step + steps == a.steps;
            const uint8_t* next = is_last ? next_panel : weights + steps * STEP_BYTES;
            int64_t row = begin;
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t num_rows = div_up(end - row, tiles - tile);  // tiles of one height
                char* tile_sums = sums + half * SUMS + tile * TILE_BYTES;
                add_tile<IS_INT8>(tile, tiles, num_rows, a.x + row * a.x_bytes + step * 4,
                                  a.x_bytes, weights, steps, next, tile_sums, step == 0);
                if (is_last && half == HALVES - 1) {
                    finish<IS_INT8, IS_GATED>(a, sums + tile * TILE_BYTES, tile_sums, row,
                                              num_rows, panel * PANEL);
                }
                row += num_rows;
            }
        }
    }
}

template <bool IS_INT8>
void compute(Linear a, bool is_gated, int num_threads) {
    const int64_t panels = div_up(a.outputs, PANEL);
    a.chunks = div_up(a.rows, CHUNK);
    const int64_t items = num_threads == 1 ? 1 : num_threads * ITEMS_PER_THREAD;
    const int64_t each = panels * a.chunks / items;
    a.panels_per_item = each < 1 ? 1 : lower(each, panels);
    const int64_t groups = div_up(panels, a.panels_per_item);
    for_each_item(groups * a.chunks, num_threads,
                  is_gated ? compute_item<IS_INT8, true> : compute_item<IS_INT8, false>, &a);
}

struct Rows {
    const uint16_t* x;  // bfloat16, rows `x_stride` apart
    int64_t x_stride, inputs;
    int8_t* codes;  // rows of whole steps
    int64_t code_bytes;
    float* scales;
    int32_t* sums;
};

// Round a row to steps of a 127th of its largest magnitude. One that is not finite gives NaN.
void quantise_row(const void* context, int64_t row) {
    const Rows& a = *static_cast<const Rows*>(context);
    const uint16_t* x = a.x + row * a.x_stride;
    int8_t* codes = a.codes + row * a.code_bytes;
    __m512 tops = _mm512_setzero_ps(), faults = _mm512_setzero_ps();
    for (int64_t i = 0; i < a.inputs; i += 16) {
        const __m512 v = load_bf16(first_lanes(a.inputs - i), x + i);
        tops = _mm512_max_ps(tops, _mm512_abs_ps(v));
        faults = _mm512_fmadd_ps(v, _mm512_setzero_ps(), faults);
    }
    const float top = _mm512_reduce_max_ps(tops);
    const __m512 factor = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < a.code_bytes; i += 16) {
        const __mmask16 mask = i < a.inputs ? first_lanes(a.inputs - i) : (__mmask16)0;
        const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(mask, x + i), factor));
        total = _mm512_add_epi32(total, code);
        _mm_mask_storeu_epi8(codes + i, first_lanes(a.code_bytes - i), _mm512_cvtsepi32_epi8(code));
    }
    a.scales[row] = top / 127.0f + _mm512_reduce_add_ps(faults);
    a.sums[row] = 128 * _mm512_reduce_add_epi32(total);
}

struct Packing {
    const uint16_t* weights;  // bfloat16 [outputs, inputs]
    int64_t outputs, inputs, steps;
    uint8_t* packed;
    float* scales;  // by output, in 8 bits
};

// What stands next to each other in the rows of a panel: a cache line of each.
constexpr int64_t TILE_STEPS = 16;
typedef uint8_t RowTile[PANEL][TILE_STEPS * 4];

// Rows that are read step by step would push each other out of the cache.
void write_steps(const RowTile& tile, int64_t steps, uint8_t* target) {
    for (int64_t step = 0; step < steps; ++step) {
        for (int64_t i = 0; i < PANEL; ++i, target += 4) memcpy(target, tile[i] + step * 4, 4);
    }
}

// Bring one panel's outputs into their layout; what is missing of 64 is zero.
void pack_bf16_panel(const void* context, int64_t panel) {
    const Packing& a = *static_cast<const Packing*>(context);
    const int64_t count = lower(PANEL, a.outputs - panel * PANEL);
    RowTile tile = {};
    for (int64_t step = 0; step < a.steps; step += TILE_STEPS) {
        const int64_t steps = lower(TILE_STEPS, a.steps - step);
        for (int64_t i = 0; i < count; ++i) {
            memcpy(tile[i], a.weights + (panel * PANEL + i) * a.inputs + step * 2, steps * 4);
        }
        write_steps(tile, steps, a.packed + (panel * a.steps + step) * STEP_BYTES);
    }
}

// The same in 8 bits, with a scale for each output; what is missing is 128, which stands for zero.
void pack_int8_panel(const void* context, int64_t panel) {
    const Packing& a = *static_cast<const Packing*>(context);
    const int64_t count = lower(PANEL, a.outputs - panel * PANEL);
    __m512 factors[PANEL];
    for (int64_t i = 0; i < count; ++i) {
        const uint16_t* row = a.weights + (panel * PANEL + i) * a.inputs;
        __m512 tops = _mm512_setzero_ps();
        for (int64_t k = 0; k < a.inputs; k += 16) {
            const __m512 v = load_bf16(first_lanes(a.inputs - k), row + k);
            tops = _mm512_max_ps(tops, _mm512_abs_ps(v));
        }
        const float top = _mm512_reduce_max_ps(tops);
        factors[i] = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
        a.scales[panel * PANEL + i] = top / 127.0f;
    }
    RowTile tile;
    memset(tile, 128, sizeof tile);
    for (int64_t step = 0; step < a.steps; step += TILE_STEPS) {
        for (int64_t i = 0; i < count; ++i) {
            const uint16_t* row = a.weights + (panel * PANEL + i) * a.inputs;
            for (int64_t j = 0; j < TILE_STEPS * 4; j += 16) {
                const int64_t k = step * 4 + j;
                const __mmask16 mask = k < a.inputs ? first_lanes(a.inputs - k) : (__mmask16)0;
                const __m512i code =
                    _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(mask, row + k), factors[i]));
                const __m512i shifted = _mm512_add_epi32(code, _mm512_set1_epi32(128));
                _mm_storeu_si128((__m128i*)(tile[i] + j), _mm512_cvtepi32_epi8(shifted));
            }
        }
        write_steps(tile, lower(TILE_STEPS, a.steps - step),
                    a.packed + (panel * a.steps + step) * STEP_BYTES);
    }
}

}  // namespace
}  // namespace vlmflow

// Whether to compute linear layers here: where the CPU has the instructions. AMX multiplies several
// times as fast as they do, and oneDNN uses it.
extern "C" int vlmflow_has_linear() {
    constexpr unsigned AMX_BF16 = 1u << 22;  // of EDX
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & AMX_BF16)) return 0;
    return vlmflow::current_level() == vlmflow::AVX512_BF16 && __builtin_cpu_supports("avx512vnni");
}

// weights [outputs, inputs] bfloat16, inputs even -> packed, of whole panels
extern "C" void vlmflow_pack_bf16(const uint16_t* weights, uint8_t* packed, int64_t outputs,
                                  int64_t inputs, int num_threads) {
    using namespace vlmflow;
    const Packing a{weights, outputs, inputs, inputs / 2, packed, nullptr};
    for_each_item(div_up(outputs, PANEL), num_threads, pack_bf16_panel, &a);
}

// The same in 8 bits, with scales [outputs] float32.
extern "C" void vlmflow_pack_int8(const uint16_t* weights, uint8_t* packed, float* scales,
                                  int64_t outputs, int64_t inputs, int num_threads) {
    using namespace vlmflow;
    const Packing a{weights, outputs, inputs, div_up(inputs, 4), packed, scales};
    for_each_item(div_up(outputs, PANEL), num_threads, pack_int8_panel, &a);
}

// x [rows, inputs] bfloat16, rows x_stride apart -> y [rows, outputs] bfloat16; bias may be null.
//
// is_gated  y = silu(the first `outputs` of the matrix) times the others; a multiple of PANEL
extern "C" void vlmflow_linear_bf16(const uint16_t* x, int64_t x_stride, const uint8_t* packed,
                                    const uint16_t* bias, uint16_t* y, int64_t rows,
                                    int64_t inputs, int64_t outputs, int is_gated,
                                    int num_threads) {
    using namespace vlmflow;
    if (rows == 0) return;
    Linear a{};
    a.x = (const uint8_t*)x, a.x_bytes = x_stride * 2;
    a.weights = packed, a.bias = bias, a.y = y;
    a.rows = rows, a.outputs = outputs, a.steps = inputs / 2;
    compute<false>(a, is_gated, num_threads);
}

// The same with weights in 8 bits, and x rounded to 8 bits row by row.
//
// scratch  rows * (4 * ceil(inputs / 4) + 8) + 64 bytes
extern "C" void vlmflow_linear_int8(const uint16_t* x, int64_t x_stride, const uint8_t* packed,
                                    const float* scales, const uint16_t* bias, uint16_t* y,
                                    uint8_t* scratch, int64_t rows, int64_t inputs,
                                    int64_t outputs, int is_gated, int num_threads) {
    using namespace vlmflow;
    if (rows == 0) return;
    const int64_t steps = div_up(inputs, 4);
    float* x_scales = (float*)scratch;
    int32_t* x_sums = (int32_t*)(x_scales + rows);
    int8_t* codes = (int8_t*)(x_sums + rows);
    const Rows of{x, x_stride, inputs, codes, steps * 4, x_scales, x_sums};
    for_each_item(rows, rows < 16 ? 1 : num_threads, quantise_row, &of);
    Linear a{};
    a.x = (const uint8_t*)codes, a.x_bytes = steps * 4;
    a.weights = packed, a.bias = bias, a.y = y;
    a.rows = rows, a.outputs = outputs, a.steps = steps;
    a.x_scales = x_scales, a.x_sums = x_sums, a.w_scales = scales;
    compute<true>(a, is_gated, num_threads);
}

#pragma GCC pop_options

#else

extern "C" int vlmflow_has_linear() { return 0; }

#endif
