// RMSNorm, RMSNorm of a sum that is kept as well, and LayerNorm, in one pass over memory.

#include <cmath>

#include "levels.h"
#include "parallel.h"

namespace vlmflow {

// norms.py has the same structure, field by field. Rows are `size` elements of float or bfloat16;
// but for those of x they lie one behind another.
struct Norm {
    const char* x;
    const char* residual;  // null: nothing is added
    const char* weight;    // [size]
    const char* bias;      // [size]; null: RMSNorm
    char* total;           // x + residual
    char* out;
    int64_t num_rows, inner;  // a row is one of `inner` of an outer index
    int64_t size;
    int64_t x_outer_stride, x_inner_stride;  // in elements
    float eps;
    int32_t is_bfloat16;
    int32_t num_threads;
};

}  // namespace vlmflow

#define VLMFLOW_KERNEL "norms_kernel.h"
#include "each_level.h"

namespace vlmflow {
namespace {

void norm_one(const void* context, int64_t row) {
    VLMFLOW_CALL(norm_row, *static_cast<const Norm*>(context), row);
}

}  // namespace
}  // namespace vlmflow

extern "C" void vlmflow_norm(const vlmflow::Norm* norm) {
    vlmflow::for_each_row(norm->num_rows, norm->size, norm->num_threads, vlmflow::norm_one, norm);
}
