// Work in items, on the threads of the OpenMP that torch has loaded.

#pragma once

#include <cstdint>

namespace vlmflow {

typedef void (*ItemFunction)(const void* context, int64_t item);

// Call `function` for each item, by threads that take the next one when they are done with theirs.
// The one place with a pragma: what OpenMP makes of a body would be compiled for no level.
static inline void for_each_item(int64_t count, int num_threads, ItemFunction function,
                                 const void* context) {
    if (count <= 1 || num_threads <= 1) {
        for (int64_t item = 0; item < count; ++item) function(context, item);
        return;
    }
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1)
    for (int64_t item = 0; item < count; ++item) function(context, item);
}

typedef void (*RowFunction)(const void* context, int64_t row);

struct RowWork {
    RowFunction function;
    const void* context;
    int64_t num_rows, rows_per_item;
};

static inline void do_some_rows(const void* context, int64_t item) {
    const RowWork& work = *static_cast<const RowWork*>(context);
    const int64_t first = item * work.rows_per_item, end = first + work.rows_per_item;
    for (int64_t row = first; row < end && row < work.num_rows; ++row) {
        work.function(work.context, row);
    }
}

// Call `function` for each row of `size` elements, as many rows an item as are worth handing out.
static inline void for_each_row(int64_t num_rows, int64_t size, int num_threads,
                                RowFunction function, const void* context) {
    constexpr int64_t ELEMENTS_PER_ITEM = 16384;
    const int64_t fitting = ELEMENTS_PER_ITEM / size;
    const RowWork work{function, context, num_rows, fitting > 1 ? fitting : 1};
    const int64_t num_items = (num_rows + work.rows_per_item - 1) / work.rows_per_item;
    for_each_item(num_items, num_threads, do_some_rows, &work);
}

}  // namespace vlmflow
