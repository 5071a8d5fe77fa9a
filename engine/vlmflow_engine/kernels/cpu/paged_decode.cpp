// Attention of one new token a sequence over the paged cache.
//
// An item is a split of a sequence's tokens and some KV heads; the query heads of a KV head share
// what is read of keys and values. Heads of a token lie side by side: the more of them an item has,
// the better memory is read, and where there are few items there is one head in each. Splits are
// cut by a sequence's own length alone, so its output has the same bits whatever else is in the
// step and however many threads there are. A sequence of one split is written out; of the others
// each leaves a maximum, a sum and an output that is not divided yet.

#include <cmath>
#include <memory>

#include "attention.h"
#include "levels.h"
#include "parallel.h"

namespace vlmflow {
namespace {

constexpr int SPLIT_TOKENS = 512;
constexpr int MAX_HEADS = 8;  // of an item
constexpr int ITEMS_PER_THREAD = 4;

// One split of one sequence for some KV heads.
struct Split {
    int64_t sequence;
    int32_t first_head, num_heads;
    int32_t first, end;    // tokens
    float* partial;        // of the first head: [group, head_dim], then [group] maxima and sums
    int64_t partial_size;  // floats between heads; 0: the only split, which leaves none
};

}  // namespace
}  // namespace vlmflow

#define VLMFLOW_KERNEL "paged_decode_kernel.h"
#include "each_level.h"

namespace vlmflow {
namespace {

struct Work {
    const Cache& cache;
    const Step& step;
    const Call& call;
    const int64_t* first_splits;  // [num_decodes + 1], of all splits of the step
    float* partials;
    int64_t partial_size;  // floats of a split and head
    int32_t heads_per_item, items_per_split;

    int32_t first_token(int64_t sequence) const {
        const int32_t hidden = step.context_lens[sequence] - call.window;
        return hidden > 0 ? hidden : 0;
    }
    int64_t num_splits(int64_t sequence) const {
        return first_splits[sequence + 1] - first_splits[sequence];
    }
};

void attend_split(const void* context, int64_t item) {
    const Work& work = *static_cast<const Work*>(context);
    const int32_t num_kv_heads = work.cache.num_kv_heads;
    const int64_t split = item / work.items_per_split;
    const int32_t first_head = (int32_t)(item % work.items_per_split) * work.heads_per_item;
    const int32_t heads_left = num_kv_heads - first_head;
    int64_t low = 0, high = work.step.num_decodes;  // the sequence whose splits it is among
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (work.first_splits[middle] <= split ? low : high) = middle;
    }
    const int32_t length = work.step.context_lens[low], first = work.first_token(low);
    const int64_t index = first / SPLIT_TOKENS + split - work.first_splits[low];
    const int64_t begin = index * SPLIT_TOKENS, end = begin + SPLIT_TOKENS;
    const bool is_whole = work.num_splits(low) == 1;
    const int64_t partial = (split * num_kv_heads + first_head) * work.partial_size;
    const Split one{low,
                    first_head,
                    heads_left < work.heads_per_item ? heads_left : work.heads_per_item,
                    (int32_t)(begin > first ? begin : first),
                    (int32_t)(end < length ? end : length),
                    is_whole ? nullptr : work.partials + partial,
                    is_whole ? 0 : work.partial_size};
    VLMFLOW_CALL(attend_split, work.cache, work.step, work.call, one);
}

void merge_sequence(const void* context, int64_t item) {
    const Work& work = *static_cast<const Work*>(context);
    const int32_t num_kv_heads = work.cache.num_kv_heads;
    const int64_t sequence = item / num_kv_heads, num_splits = work.num_splits(sequence);
    if (num_splits < 2) return;
    const int64_t stride = num_kv_heads * work.partial_size;
    const int64_t first = work.first_splits[sequence] * num_kv_heads + item % num_kv_heads;
    VLMFLOW_CALL(merge_splits, work.cache, work.call, sequence, (int)(item % num_kv_heads),
                 work.partials + first * work.partial_size, stride, num_splits);
}

}  // namespace

void paged_decode(const Cache& cache, const Step& step, const Call& call) {
    const std::unique_ptr<int64_t[]> first_splits(new int64_t[step.num_decodes + 1]);
    const int64_t group = call.num_heads / cache.num_kv_heads;
    Work work{cache, step, call, first_splits.get(), nullptr, group * (cache.head_dim + 2), 1, 1};
    int64_t num_splits = 0;
    bool has_partials = false;
    for (int64_t sequence = 0; sequence < step.num_decodes; ++sequence) {
        first_splits[sequence] = num_splits;
        const int32_t length = step.context_lens[sequence];
        const int64_t own = length > 0 ? (length - 1) / SPLIT_TOKENS -
                                             work.first_token(sequence) / SPLIT_TOKENS + 1
                                       : 1;  // one that writes zeros
        has_partials |= own > 1;
        num_splits += own;
    }
    first_splits[step.num_decodes] = num_splits;
    std::unique_ptr<float[]> partials;
    if (has_partials) {
        partials.reset(new float[num_splits * cache.num_kv_heads * work.partial_size]);
        work.partials = partials.get();
    }
    while (work.heads_per_item < cache.num_kv_heads && work.heads_per_item < MAX_HEADS &&
           num_splits * cache.num_kv_heads >=
               2 * work.heads_per_item * ITEMS_PER_THREAD * (int64_t)step.num_threads) {
        work.heads_per_item *= 2;
    }
    work.items_per_split = (cache.num_kv_heads + work.heads_per_item - 1) / work.heads_per_item;
    for_each_item(num_splits * work.items_per_split, step.num_threads, attend_split, &work);
    if (has_partials) {
        for_each_item(step.num_decodes * (int64_t)cache.num_kv_heads, step.num_threads,
                      merge_sequence, &work);
    }
}

}  // namespace vlmflow
