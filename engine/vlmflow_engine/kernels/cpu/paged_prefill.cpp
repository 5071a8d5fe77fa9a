// Attention of several new tokens a sequence over the paged cache: causal, within a window, or up
// to where an image ends, with whatever was cached before.
//
// An item is some new tokens of a sequence and one KV head; its rows are those tokens times the
// query heads of the group, which share keys and values. Keys go by in tiles that begin at whole
// multiples of TILE_TOKENS, so a row's bits do not depend on where a prompt was cut.

#include <cmath>
#include <cstdlib>
#include <memory>

#include "attention.h"
#include "levels.h"
#include "parallel.h"

namespace vlmflow {
namespace {

constexpr int MAX_ROWS = 192;  // of an item; a multiple of what the products take at a time

struct Chunk {
    int64_t sequence;
    int32_t head;
    int32_t first, end;  // new tokens, counted from the sequence's first new one
};

// How many tokens an item has.
int tokens_per_item(int group) { return group < MAX_ROWS ? MAX_ROWS / group : 1; }

}  // namespace
}  // namespace vlmflow

#define VLMFLOW_KERNEL "paged_prefill_kernel.h"
#include "each_level.h"

namespace vlmflow {
namespace {

struct Work {
    const Cache& cache;
    const Step& step;
    const Call& call;
    const int64_t* first_chunks;  // [number of chunked sequences + 1]
};

void attend_chunk(const void* context, int64_t item) {
    const Work& work = *static_cast<const Work*>(context);
    const int32_t num_kv_heads = work.cache.num_kv_heads;
    const int64_t num_sequences = work.step.num_sequences - work.step.num_decodes;
    const int64_t chunk = item / num_kv_heads;
    int64_t low = 0, high = num_sequences;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (work.first_chunks[middle] <= chunk ? low : high) = middle;
    }
    const int64_t sequence = work.step.num_decodes + low;
    const int32_t* starts = work.step.query_starts + sequence;
    const int32_t num_tokens = starts[1] - starts[0];
    const int size = tokens_per_item(work.call.num_heads / num_kv_heads);
    // The last tokens, which see most, first: threads end together.
    const int64_t index = work.first_chunks[low + 1] - 1 - chunk;
    const int64_t first = index * size, end = first + size;
    const Chunk one{sequence, (int32_t)(item % num_kv_heads), (int32_t)first,
                    (int32_t)(end < num_tokens ? end : num_tokens)};
    VLMFLOW_CALL(attend_chunk, work.cache, work.step, work.call, one);
}

}  // namespace

void paged_prefill(const Cache& cache, const Step& step, const Call& call) {
    const int64_t num_sequences = step.num_sequences - step.num_decodes;
    const std::unique_ptr<int64_t[]> first_chunks(new int64_t[num_sequences + 1]);
    const int size = tokens_per_item(call.num_heads / cache.num_kv_heads);
    int64_t num_chunks = 0;
    for (int64_t i = 0; i < num_sequences; ++i) {
        first_chunks[i] = num_chunks;
        const int32_t* starts = step.query_starts + step.num_decodes + i;
        num_chunks += (starts[1] - starts[0] + size - 1) / size;
    }
    first_chunks[num_sequences] = num_chunks;
    const Work work{cache, step, call, first_chunks.get()};
    for_each_item(num_chunks * cache.num_kv_heads, step.num_threads, attend_chunk, &work);
}

}  // namespace vlmflow
