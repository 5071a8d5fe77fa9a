// One split of one sequence for some KV heads, and the merge of several; see paged_decode.cpp.
//
// Tokens go by in tiles: scores of a tile for all rows (a row is a query head of the group), their
// softmax so far, then the values. Rows of codes become floats first, in a tile that stays in L1.

#include "row_tile.h"
#include "thread_memory.h"

enum { TILE = 64 };  // tokens

// Scores of LANES tokens for one query: the dot products, each summed in a tree.
template <typename K>
static Vec score(const float* q, const K* const* keys, int head_dim) {
    Vec sums[LANES];
    for (int t = 0; t < LANES; ++t) sums[t] = Vec{};
    int d = 0;
    for (; d + LANES <= head_dim; d += LANES) {
        const Vec part = load(q + d);
#pragma GCC unroll 16
        for (int t = 0; t < LANES; ++t) sums[t] += part * load(keys[t] + d);
    }
    Vec scores = sums_of(sums);
    for (; d < head_dim; ++d) {
        for (int t = 0; t < LANES; ++t) scores[t] += q[d] * load_one(keys[t] + d);
    }
    return scores;
}

#ifdef VLMFLOW_HAS_DPBF16
// Pairs of bfloat16 are multiplied as they lie in memory: their products are exact in float.
static Vec score_pairs(const bf16* q, const bf16* const* keys, int head_dim) {
    Vec sums[LANES];
    for (int t = 0; t < LANES; ++t) sums[t] = Vec{};
    for (int d = 0; d < head_dim; d += 2 * LANES) {
        const __m512bh part = load_raw<__m512bh>(q + d);
#pragma GCC unroll 16
        for (int t = 0; t < LANES; ++t) {
            sums[t] = (Vec)_mm512_dpbf16_ps((__m512)sums[t], part, load_raw<__m512bh>(keys[t] + d));
        }
    }
    return sums_of(sums);
}
#endif

// As the types allow. `q` as it is, and in float.
template <typename Q, typename K>
static Vec score_tokens(const Q* q, const float* floats, const K* const* keys, int head_dim) {
#ifdef VLMFLOW_HAS_DPBF16
    if constexpr (sizeof(Q) == 2 && sizeof(K) == 2) {
        if (head_dim % (2 * LANES) == 0) return score_pairs(q, keys, head_dim);
    }
#endif
    (void)q;
    return score(floats, keys, head_dim);
}

// out[row] += p[row] . values, for ROWS rows that share what is read.
template <int ROWS, typename V>
static void weigh(const float* p, const V* const* values, int num_tokens, float* out,
                  int head_dim) {
    int d = 0;
    for (; d + 2 * LANES <= head_dim; d += 2 * LANES) {
        Vec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            low[r] = load(out + r * head_dim + d);
            high[r] = load(out + r * head_dim + d + LANES);
        }
        for (int t = 0; t < num_tokens; ++t) {
            const Vec v1 = load(values[t] + d), v2 = load(values[t] + d + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                const Vec weight = splat(p[r * TILE + t]);
                low[r] += weight * v1;
                high[r] += weight * v2;
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            store(out + r * head_dim + d, low[r]);
            store(out + r * head_dim + d + LANES, high[r]);
        }
    }
    for (; d + LANES <= head_dim; d += LANES) {
        for (int r = 0; r < ROWS; ++r) {
            Vec total = load(out + r * head_dim + d);
            for (int t = 0; t < num_tokens; ++t) {
                total += splat(p[r * TILE + t]) * load(values[t] + d);
            }
            store(out + r * head_dim + d, total);
        }
    }
    for (; d < head_dim; ++d) {
        for (int r = 0; r < ROWS; ++r) {
            for (int t = 0; t < num_tokens; ++t) {
                out[r * head_dim + d] += p[r * TILE + t] * load_one(values[t] + d);
            }
        }
    }
}

template <typename V>
static void weigh_rows(const float* p, const V* const* values, int num_tokens, float* out,
                       int num_rows, int head_dim) {
    for (; num_rows >= 4; num_rows -= 4, p += 4 * TILE, out += 4 * head_dim) {
        weigh<4>(p, values, num_tokens, out, head_dim);
    }
    if (num_rows == 3) weigh<3>(p, values, num_tokens, out, head_dim);
    if (num_rows == 2) weigh<2>(p, values, num_tokens, out, head_dim);
    if (num_rows == 1) weigh<1>(p, values, num_tokens, out, head_dim);
}

enum { MAX_ROWS = 8 };  // rows that are attended at a time, of a group

// The online softmax of up to MAX_ROWS rows.
struct Softmax {
    float maxima[MAX_ROWS];
    float sums[MAX_ROWS];
    alignas(64) float scores[MAX_ROWS * TILE];
    alignas(64) float out[MAX_ROWS * vlmflow::MAX_HEAD_DIM];
};

// Turn a tile's scores (times log2 e) into weights, and scale down what was summed before.
static void weights_of_tile(Softmax& state, int row, int num_tokens, int head_dim) {
    float* scores = state.scores + row * TILE;
    for (int t = num_tokens; t < TILE; ++t) scores[t] = -INFINITY;
    Vec best = load(scores);
    for (int t = LANES; t < TILE; t += LANES) best = maximum(load(scores + t), best);
    const float before = state.maxima[row], tile_maximum = largest(best);
    const float now = tile_maximum > before ? tile_maximum : before;
    Vec total{};
    for (int t = 0; t < TILE; t += LANES) {
        const Vec weight = exp2_of_negative(load(scores + t) - now);
        store(scores + t, weight);
        total += weight;
    }
    const float decay = exp2_of_negative(splat(before - now))[0];
    state.maxima[row] = now;
    state.sums[row] = state.sums[row] * decay + sum(total);
    if (decay == 1) return;
    float* out = state.out + row * head_dim;
    for (int d = 0; d < head_dim; ++d) out[d] *= decay;
}

// Has the tile that comes next read from memory, some of it after each row of this one: all at once
// would keep the rows waiting.
template <typename Tile>
struct NextTile {
    const vlmflow::Places& places;
    const vlmflow::Cache& cache;
    int32_t first, end;  // tokens that are left
    int32_t portion;

    void read_some() {
        const int32_t stop = end - first < portion ? end : first + portion;
        Tile::prefetch(places, first, stop, cache.keys, cache.head_dim);
        Tile::prefetch(places, first, stop, cache.values, cache.head_dim);
        first = stop;
    }
};

// Some query heads of a KV head, and what is summed for them.
template <typename Q>
struct Rows {
    const Q* queries;
    int64_t stride;  // elements between them
    int head;        // the first one, of all query heads
    int count;
    alignas(64) float floats[MAX_ROWS * vlmflow::MAX_HEAD_DIM];  // the queries
    Softmax state;

    void begin(int head_dim) {
        for (int r = 0; r < count; ++r) {
            for (int d = 0; d < head_dim; ++d) {
                floats[r * head_dim + d] = load_one(queries + r * stride + d);
                state.out[r * head_dim + d] = 0;
            }
            state.maxima[r] = -INFINITY;
            state.sums[r] = 0;
        }
    }

    template <typename K, typename Tile>
    void see_keys(const K* const* keys, int num_tokens, int head_dim, float scale,
                  NextTile<Tile>& next) {
        for (int r = 0; r < count; ++r) {
            for (int t = 0; t < num_tokens; t += LANES) {
                const Vec scores = score_tokens(queries + r * stride, floats + r * head_dim,
                                                keys + t, head_dim);
                store(state.scores + r * TILE + t, scores * scale);
            }
            weights_of_tile(state, r, num_tokens, head_dim);
            next.read_some();
        }
    }
};

template <typename Q, typename K, bool HAS_CODES>
static void attend_split_of(const vlmflow::Cache& cache, const vlmflow::Step& step,
                            const vlmflow::Call& call, const vlmflow::Split& split) {
    const int head_dim = cache.head_dim, group = call.num_heads / cache.num_kv_heads;
    const int batches = (group + MAX_ROWS - 1) / MAX_ROWS;  // of a KV head
    const int64_t token_row = step.query_starts[split.sequence];
    const float scale = call.scale * 1.44269504f;
    const vlmflow::Queries queries = vlmflow::queries_of(cache, call);
    const vlmflow::Places places =
        vlmflow::places_of(cache, step, split.sequence, split.first_head);
    const int num_rows = split.num_heads * batches;
    Rows<Q>* all = (Rows<Q>*)thread_memory(num_rows * sizeof(Rows<Q>));
    for (int i = 0; i < num_rows; ++i) {
        Rows<Q>& rows = all[i];
        const int first = i % batches * MAX_ROWS;
        rows.head = (split.first_head + i / batches) * group + first;
        rows.count = group - first < MAX_ROWS ? group - first : MAX_ROWS;
        rows.queries = (const Q*)queries.rows + token_row * queries.token_stride +
                       rows.head * queries.head_stride;
        rows.stride = queries.head_stride;
        rows.begin(head_dim);
    }
    typedef RowTile<K, HAS_CODES, TILE> Tile;
    Tile tile;
    for (int32_t token = split.first; token < split.end; token += TILE) {
        const int num_tokens = split.end - token < TILE ? split.end - token : TILE;
        const int32_t end = token + num_tokens;
        const int32_t next_end = split.end - end < TILE ? split.end : end + TILE;
        for (int h = 0; h < split.num_heads; ++h) {
            vlmflow::Places own = places;
            own.head += h;
            tile.find(own, token, num_tokens, cache.keys, cache.key_scales, head_dim);
            NextTile<Tile> next{own, cache, end, next_end, (TILE + group - 1) / group};
            for (int i = h * batches; i < (h + 1) * batches; ++i) {
                all[i].see_keys(tile.rows, num_tokens, head_dim, scale, next);
            }
            tile.find(own, token, num_tokens, cache.values, cache.value_scales, head_dim);
            for (int i = h * batches; i < (h + 1) * batches; ++i) {
                weigh_rows(all[i].state.scores, tile.rows, num_tokens, all[i].state.out,
                           all[i].count, head_dim);
            }
        }
    }
    for (int i = 0; i < num_rows; ++i) {
        const Rows<Q>& rows = all[i];
        const int first = i % batches * MAX_ROWS;
        for (int r = 0; r < rows.count; ++r) {
            const float* summed = rows.state.out + r * head_dim;
            if (split.partial_size == 0) {
                // A sequence of no tokens gets zeros.
                const float factor = split.first < split.end ? 1 / rows.state.sums[r] : 0;
                Q* out = (Q*)call.out + (token_row * call.num_heads + rows.head + r) * head_dim;
                write_row(out, summed, factor, head_dim);
                continue;
            }
            float* partial = split.partial + i / batches * split.partial_size;
            memcpy(partial + (first + r) * head_dim, summed, head_dim * sizeof(float));
            float* stats = partial + group * head_dim + 2 * (first + r);
            stats[0] = rows.state.maxima[r];
            stats[1] = rows.state.sums[r];
        }
    }
}

static void attend_split(const vlmflow::Cache& cache, const vlmflow::Step& step,
                         const vlmflow::Call& call, const vlmflow::Split& split) {
    if (cache.format == vlmflow::FLOAT) {
        attend_split_of<float, float, false>(cache, step, call, split);
    } else if (cache.format == vlmflow::BFLOAT16) {
        attend_split_of<bf16, bf16, false>(cache, step, call, split);
    } else if (call.is_bfloat16) {
        attend_split_of<bf16, float, true>(cache, step, call, split);
    } else {
        attend_split_of<float, float, true>(cache, step, call, split);
    }
}

// Add up what the splits of a sequence have left, first to last.
template <typename Q>
static void merge_splits_of(const vlmflow::Cache& cache, const vlmflow::Call& call,
                            int64_t sequence, int head, const float* partials, int64_t stride,
                            int64_t num_splits) {
    const int head_dim = cache.head_dim, group = call.num_heads / cache.num_kv_heads;
    Q* out = (Q*)call.out + (sequence * call.num_heads + (int64_t)head * group) * head_dim;
    float merged[vlmflow::MAX_HEAD_DIM];
    for (int row = 0; row < group; ++row) {
        const float* stats = partials + group * head_dim + 2 * row;
        float best = stats[0], total = 0;
        for (int64_t s = 1; s < num_splits; ++s) {
            best = stats[s * stride] > best ? stats[s * stride] : best;
        }
        for (int d = 0; d < head_dim; ++d) merged[d] = 0;
        for (int64_t s = 0; s < num_splits; ++s) {
            const float weight = exp2_of_negative(splat(stats[s * stride] - best))[0];
            const float* part = partials + s * stride + row * head_dim;
            total += weight * stats[s * stride + 1];
            for (int d = 0; d < head_dim; ++d) merged[d] += weight * part[d];
        }
        write_row(out + row * head_dim, merged, 1 / total, head_dim);
    }
}

static void merge_splits(const vlmflow::Cache& cache, const vlmflow::Call& call, int64_t sequence,
                         int head, const float* partials, int64_t stride, int64_t num_splits) {
    if (call.is_bfloat16) {
        merge_splits_of<bf16>(cache, call, sequence, head, partials, stride, num_splits);
    } else {
        merge_splits_of<float>(cache, call, sequence, head, partials, stride, num_splits);
    }
}
