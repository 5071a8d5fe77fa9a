// Compile the header VLMFLOW_KERNEL once for each level, in a namespace of its name; see levels.h.
// LANES is the number of floats in a vector register.

#define LANES 4
#define LANE_LIST 0, 1, 2, 3
namespace {
namespace plain {
#include "vector.h"
#include VLMFLOW_KERNEL
}  // namespace plain
}  // namespace
#undef LANES
#undef LANE_LIST

#if VLMFLOW_X86

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define LANE_LIST 0, 1, 2, 3, 4, 5, 6, 7
namespace {
namespace avx2 {
#include "vector.h"
#include VLMFLOW_KERNEL
}  // namespace avx2
}  // namespace
#undef LANES
#undef LANE_LIST
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define LANES 16
#define LANE_LIST 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
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
#undef LANE_LIST
#pragma GCC pop_options

#endif
