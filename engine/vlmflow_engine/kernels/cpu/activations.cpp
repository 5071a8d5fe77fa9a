// act(x), and act(gate) * up of a merged layer's output, in one pass over memory.

#include "levels.h"
#include "parallel.h"

namespace vlmflow {

enum Name : int32_t { SILU = 0, QUICK_GELU = 1, GELU_TANH = 2 };

// activations.py has the same structure, field by field. Elements are float or bfloat16.
struct Activation {
    const char* x;  // rows of `size`, or of `size` gates and then as many to multiply them by
    char* out;      // [num_rows, size]
    int64_t num_rows, size;
    int64_t x_stride;  // in elements
    int32_t name;
    int32_t is_gated;
    int32_t is_bfloat16;
    int32_t num_threads;
};

}  // namespace vlmflow

#define VLMFLOW_KERNEL "activations_kernel.h"
#include "each_level.h"

namespace vlmflow {
namespace {

void activate_one(const void* context, int64_t row) {
    VLMFLOW_CALL(activate_row, *static_cast<const Activation*>(context), row);
}

}  // namespace
}  // namespace vlmflow

extern "C" void vlmflow_activate(const vlmflow::Activation* act) {
    vlmflow::for_each_row(act->num_rows, act->size, act->num_threads, vlmflow::activate_one, act);
}
