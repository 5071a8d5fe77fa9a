// The instruction sets that kernels are compiled for, and the choice among them.
//
// A kernel stands in a header of its own. The unit that exports it names the header and includes
// each_level.h, which compiles it once for each level, in a namespace of the level's name:
//
//     #include "levels.h"
//     #define VLMFLOW_KERNEL "rms_norm_kernel.h"      defines `static void rms_norm(...)`
//     #include "each_level.h"
//
//     extern "C" void vlmflow_rms_norm(...) { VLMFLOW_CALL(rms_norm, ...); }
//
// Lambdas do not inherit the instruction set in GCC: kernels have none.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#define VLMFLOW_X86 1
#include <immintrin.h>
#else
#define VLMFLOW_X86 0
#endif

namespace vlmflow {

enum Level : int { PLAIN = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3 };

// The best one of this CPU, or what a test or a user has chosen below it.
Level current_level();

}  // namespace vlmflow

#if VLMFLOW_X86
#define VLMFLOW_CALL(function, ...)                                                 \
    do {                                                                            \
        switch (vlmflow::current_level()) {                                         \
            case vlmflow::AVX512_BF16: avx512_bf16::function(__VA_ARGS__); break;   \
            case vlmflow::AVX512: avx512::function(__VA_ARGS__); break;             \
            case vlmflow::AVX2: avx2::function(__VA_ARGS__); break;                 \
            default: plain::function(__VA_ARGS__);                                  \
        }                                                                           \
    } while (0)
#else
#define VLMFLOW_CALL(function, ...) plain::function(__VA_ARGS__)
#endif
