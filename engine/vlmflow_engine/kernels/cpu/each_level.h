// Compile the header VLMFLOW_KERNEL once for each level, in a namespace of its name; see levels.h.
// LANES is the number of floats in a vector register.

#define LANES 4
namespace {
namespace plain {
#include "vector.h"
#include VLMFLOW_KERNEL
}  // namespace plain
}  // namespace
#undef LANES

#if VLMFLOW_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
namespace {
namespace avx2 {
#include "vector.h"
#include VLMFLOW_KERNEL
}  // namespace avx2
}  // namespace
#undef LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define LANES 16
namespace {
namespace avx512 {
#include "vector.h"
#include VLMFLOW_KERNEL
}  // namespace avx512
}  // namespace
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")
#define VLMFLOW_HAS_DPBF16 1
namespace {
namespace avx512_bf16 {
#include "vector.h"
#include VLMFLOW_KERNEL
}  // namespace avx512_bf16
}  // namespace
#undef VLMFLOW_HAS_DPBF16
#undef LANES
#pragma GCC pop_options

#endif
