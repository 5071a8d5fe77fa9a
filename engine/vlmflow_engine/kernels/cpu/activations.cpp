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

constexpr int64_t ELEMENTS_PER_ITEM = 16384;

struct Work {
    const Activation& act;
    int64_t rows_per_item;
};

void activate_some(const void* context, int64_t item) {
    const Work& work = *static_cast<const Work*>(context);
    const int64_t first = item * work.rows_per_item, end = first + work.rows_per_item;
    for (int64_t row = first; row < end && row < work.act.num_rows; ++row) {
        VLMFLOW_CALL(activate_row, work.act, row);
    }
}

}  // namespace
}  // namespace vlmflow

extern "C" void vlmflow_activate(const vlmflow::Activation* act) {
    const int64_t fitting = vlmflow::ELEMENTS_PER_ITEM / act->size;
    const vlmflow::Work work{*act, fitting > 1 ? fitting : 1};
    const int64_t num_items = (act->num_rows + work.rows_per_item - 1) / work.rows_per_item;
    vlmflow::for_each_item(num_items, act->num_threads, vlmflow::activate_some, &work);
}
