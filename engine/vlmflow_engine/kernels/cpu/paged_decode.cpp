// Attention of one new token a sequence over the paged cache.
//
// An item is a split of a sequence's tokens and one KV head; its query heads share what is read of
// keys and values. Splits are cut by a sequence's own length alone, so its output has the same bits
// whatever else is in the step and however many threads there are. A sequence of one split is
// written out; of the others each leaves a maximum, a sum and an output that is not divided yet.

#include <cmath>
#include <memory>

#include "attention.h"
#include "levels.h"
#include "parallel.h"

namespace vlmflow {
namespace {

constexpr int SPLIT_TOKENS = 512;

// One split of one sequence for one KV head.
struct Split {
    int64_t sequence;
    int32_t head;
    int32_t first, end;  // tokens
    float* partial;      // [group, head_dim], then [group] maxima and sums; null: the only split
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
    const int64_t split = item / num_kv_heads;
    int64_t low = 0, high = work.step.num_decodes;  // the sequence whose splits it is among
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (work.first_splits[middle] <= split ? low : high) = middle;
    }
    const int32_t length = work.step.context_lens[low], first = work.first_token(low);
    const int64_t index = first / SPLIT_TOKENS + split - work.first_splits[low];
    const int64_t begin = index * SPLIT_TOKENS, end = begin + SPLIT_TOKENS;
    const bool is_whole = work.num_splits(low) == 1;
    const Split one{low, (int32_t)(item % num_kv_heads), (int32_t)(begin > first ? begin : first),
                    (int32_t)(end < length ? end : length),
                    is_whole ? nullptr : work.partials + item * work.partial_size};
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
    Work work{cache, step, call, first_splits.get(), nullptr, group * (cache.head_dim + 2)};
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
    for_each_item(num_splits * cache.num_kv_heads, step.num_threads, attend_split, &work);
    if (has_partials) {
        for_each_item(step.num_decodes * (int64_t)cache.num_kv_heads, step.num_threads,
                      merge_sequence, &work);
    }
}

}  // namespace vlmflow
