// Turn queries and keys by their positions, and store keys and values in the paged cache.

#include "attention.h"
#include "levels.h"
#include "parallel.h"

#define VLMFLOW_KERNEL "store_kv_kernel.h"
#include "each_level.h"

namespace vlmflow {
namespace {

constexpr int TOKENS_PER_ITEM = 8;

struct Work {
    const Cache& cache;
    const Step& step;
    const Call& call;
};

void store_some(const void* context, int64_t item) {
    const Work& work = *static_cast<const Work*>(context);
    const int64_t first = item * TOKENS_PER_ITEM;
    const int64_t end = first + TOKENS_PER_ITEM;
    const int64_t last = end < work.step.num_tokens ? end : work.step.num_tokens;
    for (int64_t token = first; token < last; ++token) {
        VLMFLOW_CALL(store_token, work.cache, work.step, work.call, token);
    }
}

}  // namespace

void store_kv(const Cache& cache, const Step& step, const Call& call) {
    const Work work{cache, step, call};
    const int64_t num_items = (step.num_tokens + TOKENS_PER_ITEM - 1) / TOKENS_PER_ITEM;
    for_each_item(num_items, step.num_threads, store_some, &work);
}

}  // namespace vlmflow
