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

constexpr int64_t ELEMENTS_PER_ITEM = 16384;

struct Work {
    const Norm& norm;
    int64_t rows_per_item;
};

void norm_some(const void* context, int64_t item) {
    const Work& work = *static_cast<const Work*>(context);
    const int64_t first = item * work.rows_per_item, end = first + work.rows_per_item;
    for (int64_t row = first; row < end && row < work.norm.num_rows; ++row) {
        VLMFLOW_CALL(norm_row, work.norm, row);
    }
}

}  // namespace
}  // namespace vlmflow

extern "C" void vlmflow_norm(const vlmflow::Norm* norm) {
    const int64_t fitting = vlmflow::ELEMENTS_PER_ITEM / norm->size;
    const vlmflow::Work work{*norm, fitting > 1 ? fitting : 1};
    const int64_t num_items = (norm->num_rows + work.rows_per_item - 1) / work.rows_per_item;
    vlmflow::for_each_item(num_items, norm->num_threads, vlmflow::norm_some, &work);
}
