// Which instruction set this CPU, or somebody's wish, lets the kernels use.

#include "levels.h"

#include <atomic>

namespace vlmflow {
namespace {

Level best_level() {
#if VLMFLOW_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vl");
    if (has_avx512) {
        return __builtin_cpu_supports("avx512bf16") ? AVX512_BF16 : AVX512;
    }
    return has_avx2 ? AVX2 : PLAIN;
#else
    return PLAIN;
#endif
}

std::atomic<Level> chosen{best_level()};

}  // namespace

Level current_level() { return chosen.load(std::memory_order_relaxed); }

}  // namespace vlmflow

extern "C" int vlmflow_best_level() { return vlmflow::best_level(); }

// The caller knows that this CPU has it.
extern "C" void vlmflow_use_level(int level) {
    vlmflow::chosen.store(static_cast<vlmflow::Level>(level), std::memory_order_relaxed);
}
