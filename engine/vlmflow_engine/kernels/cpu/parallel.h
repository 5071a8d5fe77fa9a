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

}  // namespace vlmflow
