// Some new tokens of one sequence for one KV head; see paged_prefill.cpp.
//
// Both products, of queries and keys and of weights and values, are of words: floats, or pairs of
// bfloat16 that one instruction multiplies and adds up. Keys are packed with a token a lane, values
// with an element a lane, once for all rows of the item.

enum { TILE_TOKENS = 64 };

#include "row_tile.h"
#include "thread_memory.h"
#include "word_product.h"

// All that an item needs; of a thread, and used again.
template <typename W>
struct Scratch {
    // A word is W::WIDTH elements. Rows and elements are padded to what the products take.
    typename W::Word* queries;  // [rows, words of a head]
    typename W::Word* weights;  // [rows, words of a tile's tokens]
    typename W::Word* keys;     // [words of a head, TILE_TOKENS]
    typename W::Word* values;   // [words of a tile's tokens, padded head_dim]
    float* scores;              // [rows, TILE_TOKENS]
    float* out;                 // [rows, padded head_dim]
    float* maxima;              // [rows]
    float* sums;                // [rows]
};

template <typename W>
static Scratch<W> scratch_of(int num_rows, int head_dim) {
    typedef typename W::Word Word;
    const int64_t words = padded(head_dim, 4 * W::WIDTH) / W::WIDTH, width = padded(head_dim, LANES);
    const int64_t tile_words = TILE_TOKENS / W::WIDTH;
    const int64_t size = sizeof(float) * (num_rows * (words + tile_words + TILE_TOKENS + width + 2) +
                                          words * TILE_TOKENS + tile_words * width) +
                         8 * 64;
    char* place = thread_memory(size);
    Scratch<W> s;
    s.queries = take<Word>(place, num_rows * words);
    s.weights = take<Word>(place, num_rows * tile_words);
    s.keys = take<Word>(place, words * TILE_TOKENS);
    s.values = take<Word>(place, tile_words * width);
    s.scores = take<float>(place, num_rows * TILE_TOKENS);
    s.out = take<float>(place, num_rows * width);
    s.maxima = take<float>(place, num_rows);
    s.sums = take<float>(place, num_rows);
    return s;
}

// Tokens [first, end) that a row sees.
struct View {
    int32_t first, end;
};

static View view_of(const vlmflow::Step& step, const vlmflow::Call& call, int64_t row,
                    int32_t position) {
    const int32_t first = position + 1 - call.window;
    const int32_t end = step.visible_ends ? step.visible_ends[row] : position + 1;
    return {first > 0 ? first : 0, end};
}

// Turn a row's scores of the tile at `token` into weights, and scale down what was summed before.
template <typename W>
static void weigh_scores(const Scratch<W>& s, int row, View view, int32_t token, float scale,
                         int width) {
    float* scores = s.scores + row * TILE_TOKENS;
    const bool sees_all = view.first <= token && token + TILE_TOKENS <= view.end;
    if (!sees_all) {
        for (int t = 0; t < TILE_TOKENS; ++t) {
            const bool is_seen = view.first <= token + t && token + t < view.end;
            scores[t] = is_seen ? scores[t] : -INFINITY;
        }
    }
    Vec best = load(scores);
    for (int t = LANES; t < TILE_TOKENS; t += LANES) best = maximum(load(scores + t), best);
    const float before = s.maxima[row], tile_maximum = largest(best) * scale;
    const float now = tile_maximum > before ? tile_maximum : before;
    // Nothing seen yet: what is subtracted must be a number.
    const float shift = now == -INFINITY ? 0 : now;
    Vec total{};
    for (int t = 0; t < TILE_TOKENS; t += 2 * LANES) {
        const Vec w1 = exp2_of_negative(load(scores + t) * scale - shift);
        const Vec w2 = exp2_of_negative(load(scores + t + LANES) * scale - shift);
        W::store_two(s.weights + (row * TILE_TOKENS + t) / W::WIDTH, w1, w2);
        total += w1 + w2;
    }
    const float decay = exp2_of_negative(splat(before - shift))[0];
    s.maxima[row] = now;
    s.sums[row] = s.sums[row] * decay + sum(total);
    if (decay == 1) return;
    float* out = s.out + row * width;
    for (int d = 0; d < width; d += LANES) store(out + d, load(out + d) * decay);
}

template <typename Q, typename W, typename K, bool HAS_CODES>
static void attend_chunk_of(const vlmflow::Cache& cache, const vlmflow::Step& step,
                            const vlmflow::Call& call, const vlmflow::Chunk& chunk) {
    const int head_dim = cache.head_dim, group = call.num_heads / cache.num_kv_heads;
    const int width = padded(head_dim, LANES), words = padded(head_dim, 4 * W::WIDTH) / W::WIDTH;
    const int tile_words = TILE_TOKENS / W::WIDTH;
    const int num_rows = (chunk.end - chunk.first) * group;
    const int padded_rows = padded(num_rows, PRODUCT_ROWS);
    const int64_t start = step.query_starts[chunk.sequence];
    const int32_t length = step.context_lens[chunk.sequence];
    const int32_t past = length - (int32_t)(step.query_starts[chunk.sequence + 1] - start);
    const float scale = call.scale * 1.44269504f;
    const vlmflow::Places places = vlmflow::places_of(cache, step, chunk.sequence, chunk.head);
    const vlmflow::Queries queries = vlmflow::queries_of(cache, call);
    const Scratch<W> s = scratch_of<W>(padded_rows, head_dim);

    int32_t first_seen = length, end_seen = 0;
    for (int32_t i = chunk.first; i < chunk.end; ++i) {
        const View view = view_of(step, call, start + i, past + i);
        first_seen = view.first < first_seen ? view.first : first_seen;
        end_seen = view.end > end_seen ? view.end : end_seen;
    }
    end_seen = end_seen < length ? end_seen : length;
    for (int row = 0; row < padded_rows; ++row) {
        const int64_t token = start + chunk.first + row / group;
        const int64_t head = (int64_t)chunk.head * group + row % group;
        const Q* q = (const Q*)queries.rows + token * queries.token_stride +
                     head * queries.head_stride;
        W::pack_row(row < num_rows ? q : nullptr, s.queries + row * words, words, head_dim);
        for (int d = 0; d < width; d += LANES) store(s.out + row * width + d, Vec{});
        s.maxima[row] = -INFINITY;
        s.sums[row] = 0;
    }
    RowTile<K, HAS_CODES, TILE_TOKENS> tile;
    for (int32_t token = first_seen / TILE_TOKENS * TILE_TOKENS; token < end_seen;
         token += TILE_TOKENS) {
        const int32_t first = first_seen > token ? first_seen : token;
        const int32_t end = end_seen < token + TILE_TOKENS ? end_seen : token + TILE_TOKENS;
        tile.find(places, first, end - first, cache.keys, cache.key_scales, head_dim);
        W::pack_keys(tile.rows, first - token, end - token, s.keys, words, head_dim);
        multiply<W>(s.queries, words, s.keys, TILE_TOKENS, words, s.scores, padded_rows, false);
        for (int row = 0; row < num_rows; ++row) {
            const int32_t i = chunk.first + row / group;
            weigh_scores(s, row, view_of(step, call, start + i, past + i), token, scale, width);
        }
        tile.find(places, first, end - first, cache.values, cache.value_scales, head_dim);
        W::pack_values(tile.rows, first - token, end - token, s.values, width, head_dim);
        multiply<W>(s.weights, tile_words, s.values, width, tile_words, s.out, padded_rows, true);
    }
    for (int row = 0; row < num_rows; ++row) {
        const int64_t token = start + chunk.first + row / group;
        const int64_t head = (int64_t)chunk.head * group + row % group;
        const float factor = s.sums[row] == 0 ? 0 : 1 / s.sums[row];  // zeros where nothing is seen
        write_row((Q*)call.out + (token * call.num_heads + head) * head_dim, s.out + row * width,
                  factor, head_dim);
    }
}

static void attend_chunk(const vlmflow::Cache& cache, const vlmflow::Step& step,
                         const vlmflow::Call& call, const vlmflow::Chunk& chunk) {
    if (cache.format == vlmflow::FLOAT) {
        attend_chunk_of<float, FloatWords, float, false>(cache, step, call, chunk);
    } else if (cache.format == vlmflow::BFLOAT16) {
        attend_chunk_of<bf16, BestWords, bf16, false>(cache, step, call, chunk);
    } else if (call.is_bfloat16) {
        attend_chunk_of<bf16, BestWords, BestWords::Element, true>(cache, step, call, chunk);
    } else {
        attend_chunk_of<float, FloatWords, float, true>(cache, step, call, chunk);
    }
}
