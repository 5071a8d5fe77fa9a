// What a layer's attention is told: its cache, the step, and the call. attention.py has the same
// structures, field by field.

#pragma once

#include <cstdint>

namespace vlmflow {

enum Format : int32_t { FLOAT = 0, BFLOAT16 = 1, INT8 = 2 };

// A layer's keys and values, [num_blocks, block_size, num_kv_heads, head_dim], contiguous.
struct Cache {
    char* keys;
    char* values;
    char* key_scales;  // INT8: bfloat16 scale and minimum of each row, see kv_quant.py
    char* value_scales;
    int32_t format;
    int32_t block_size;
    int32_t num_kv_heads;
    int32_t head_dim;
};

// As kernels/paged_metadata.py has it.
struct Step {
    const int64_t* slot_mapping;
    const int32_t* block_tables;
    int64_t block_table_stride;
    const int32_t* table_rows;
    const int32_t* context_lens;
    const int32_t* query_starts;
    const int32_t* visible_ends;  // null: causal
    int32_t num_tokens;
    int32_t num_sequences;
    int32_t num_decodes;
    int32_t num_threads;
};

struct Call {
    const char* q;  // [num_tokens, num_heads, head_dim]
    const char* k;
    const char* v;
    const char* cos;  // [num_tokens, head_dim]; null: nothing turns
    const char* sin;
    // [num_tokens, num_heads, head_dim], contiguous. Turned queries lie here until they have been
    // read: whoever writes an output row has read its query before.
    char* out;
    // In elements. The last dimension is contiguous.
    int64_t q_token_stride, q_head_stride;
    int64_t k_token_stride, k_head_stride;
    int64_t v_token_stride, v_head_stride;
    int64_t angle_stride;
    int32_t num_heads;
    int32_t is_bfloat16;  // q, k, v and out; else float
    int32_t has_float_angles;
    int32_t window;  // tokens seen back, the last one included
    float scale;     // of q . k
};

constexpr int MAX_HEAD_DIM = 512;

// Turn queries and keys, store keys and values.
void store_kv(const Cache& cache, const Step& step, const Call& call);
// Attend the first `num_decodes` sequences, one new token each; then the others, several each.
void paged_decode(const Cache& cache, const Step& step, const Call& call);
void paged_prefill(const Cache& cache, const Step& step, const Call& call);

// Queries as attention reads them: turned already, or as they came.
struct Queries {
    const char* rows;
    int64_t token_stride, head_stride;
};
static inline Queries queries_of(const Cache& cache, const Call& call) {
    if (call.cos == nullptr) return {call.q, call.q_token_stride, call.q_head_stride};
    return {call.out, (int64_t)call.num_heads * cache.head_dim, cache.head_dim};
}

// Row of the cache that holds a sequence's token, in rows of one token and KV head.
struct Places {
    const int32_t* table;
    int32_t block_size, num_kv_heads, head;
    int64_t row(int64_t token) const {
        const int64_t slot = (int64_t)table[token / block_size] * block_size + token % block_size;
        return slot * num_kv_heads + head;
    }
};
static inline Places places_of(const Cache& cache, const Step& step, int64_t sequence, int head) {
    const int32_t* table = step.block_tables + step.table_rows[sequence] * step.block_table_stride;
    return {table, cache.block_size, cache.num_kv_heads, head};
}

}  // namespace vlmflow
