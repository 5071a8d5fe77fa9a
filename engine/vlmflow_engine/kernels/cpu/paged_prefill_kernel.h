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
    typename W::Word* keys;     // [words of a head, TILE_TOKENS]
    typename W::Word* values;   // [words of a tile's tokens, padded head_dim]
    float* out;                 // [rows, padded head_dim]
    float* maxima;              // [rows]
    Vec* sums;                  // [rows], of each lane's tokens
    // Of the rows that are multiplied together, which stay in the innermost cache.
    float* scores;              // [PRODUCT_ROWS, TILE_TOKENS]
    typename W::Word* weights;  // [PRODUCT_ROWS, words of a tile's tokens]
};

template <typename W>
static Scratch<W> scratch_of(int num_rows, int head_dim) {
    typedef typename W::Word Word;
    const int64_t words = padded(head_dim, 4 * W::WIDTH) / W::WIDTH, width = padded(head_dim, LANES);
    const int64_t tile_words = TILE_TOKENS / W::WIDTH;
    const int64_t size = sizeof(float) * (num_rows * (words + width + 1 + LANES) +
                                          words * TILE_TOKENS + tile_words * width +
                                          PRODUCT_ROWS * (TILE_TOKENS + tile_words)) +
                         8 * 64;
    char* place = thread_memory(size);
    Scratch<W> s;
    s.queries = take<Word>(place, num_rows * words);
    s.keys = take<Word>(place, words * TILE_TOKENS);
    s.values = take<Word>(place, tile_words * width);
    s.out = take<float>(place, num_rows * width);
    s.maxima = take<float>(place, num_rows);
    s.sums = take<Vec>(place, num_rows);
    s.scores = take<float>(place, PRODUCT_ROWS * TILE_TOKENS);
    s.weights = take<Word>(place, PRODUCT_ROWS * tile_words);
    return s;
}

// Tokens [first, end) that a row sees.
struct View {
    int32_t first, end;
};

// What the rows of an item see; those that only fill up the last product see all.
struct Views {
    const vlmflow::Step& step;
    const vlmflow::Call& call;
    int64_t first_token;     // of the item, in the step
    int32_t first_position;  // in the sequence
    int32_t length;
    int num_rows, group;

    View of(int row) const {
        if (row >= num_rows) return {0, INT32_MAX};
        const int32_t position = first_position + row / group;
        const int32_t first = position + 1 - call.window;
        const int32_t end =
            step.visible_ends ? step.visible_ends[first_token + row / group] : position + 1;
        return {first > 0 ? first : 0, end < length ? end : length};
    }

    // Of some rows together, the first of which is there.
    View of_rows(int row, int end_row) const {
        View all = of(row);
        for (row += group - row % group; row < end_row && row < num_rows; row += group) {
            const View view = of(row);
            all.first = view.first < all.first ? view.first : all.first;
            all.end = view.end > all.end ? view.end : all.end;
        }
        return all;
    }
};

// The scores that a row sees, from the tile's first token on; the others become -infinity.
static void hide_unseen(float* scores, View view, int32_t token, int count) {
    const IntVec lanes = {LANE_LIST};
    const int32_t first = view.first - token;
    const int32_t end = view.end - token > count ? count : view.end - token;
    for (int t = 0; t < count; t += LANES) {
        const IntVec index = lanes + t;
        const IntVec is_seen = (index >= first) & (index < end);
        store(scores + t, is_seen ? load(scores + t) : splat(-INFINITY));
    }
}

// Turn the scores of PRODUCT_ROWS rows and the first `count` tokens of a tile into weights.
// decays[r] is what a row's earlier sums are to be multiplied by.
template <typename W>
static void weigh_scores(const Scratch<W>& s, int row, int count, float scale, float* decays) {
    float shifts[PRODUCT_ROWS];
    for (int r = 0; r < PRODUCT_ROWS; ++r) {
        const float* scores = s.scores + r * TILE_TOKENS;
        Vec best = load(scores);
        for (int t = LANES; t < count; t += LANES) best = maximum(load(scores + t), best);
        const float before = s.maxima[row + r], tile_maximum = largest(best) * scale;
        const float now = tile_maximum > before ? tile_maximum : before;
        s.maxima[row + r] = now;
        // Nothing seen yet: what is subtracted must be a number.
        shifts[r] = now == -INFINITY ? 0 : now;
        decays[r] = before - shifts[r];
    }
    for (int r = 0; r < PRODUCT_ROWS; r += LANES) {
        store(decays + r, exp2_of_negative(load(decays + r)));
    }
    for (int r = 0; r < PRODUCT_ROWS; ++r) {
        const float* scores = s.scores + r * TILE_TOKENS;
        typename W::Word* weights = s.weights + r * (TILE_TOKENS / W::WIDTH);
        Vec total = s.sums[row + r] * decays[r];
        int t = 0;
        for (; t + 2 * LANES <= count; t += 2 * LANES) {
            const Vec w1 = W::exp2(load(scores + t) * scale - shifts[r]);
            const Vec w2 = W::exp2(load(scores + t + LANES) * scale - shifts[r]);
            W::store_two(weights + t / W::WIDTH, w1, w2);
            total += w1 + w2;
        }
        if (t < count) {
            const Vec last = W::exp2(load(scores + t) * scale - shifts[r]);
            W::store_two(weights + t / W::WIDTH, last, Vec{});
            total += last;
        }
        s.sums[row + r] = total;
    }
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
    const Views views{step,   call,     start + chunk.first, past + chunk.first,
                      length, num_rows, group};

    for (int row = 0; row < padded_rows; ++row) {
        const int64_t token = start + chunk.first + row / group;
        const int64_t head = (int64_t)chunk.head * group + row % group;
        const Q* q = (const Q*)queries.rows + token * queries.token_stride +
                     head * queries.head_stride;
        W::pack_row(row < num_rows ? q : nullptr, s.queries + row * words, words, head_dim);
        for (int d = 0; d < width; d += LANES) store(s.out + row * width + d, Vec{});
        s.maxima[row] = -INFINITY;
        s.sums[row] = Vec{};
    }
    const View seen = views.of_rows(0, num_rows);
    RowTile<K, HAS_CODES, TILE_TOKENS> tile;
    for (int32_t token = seen.first / TILE_TOKENS * TILE_TOKENS; token < seen.end;
         token += TILE_TOKENS) {
        const int32_t first = seen.first > token ? seen.first : token;
        const int32_t end = seen.end < token + TILE_TOKENS ? seen.end : token + TILE_TOKENS;
        tile.find(places, first, end - first, cache.keys, cache.key_scales, head_dim);
        W::pack_keys(tile.rows, first - token, end - token, s.keys, words, head_dim);
        tile.find(places, first, end - first, cache.values, cache.value_scales, head_dim);
        W::pack_values(tile.rows, first - token, end - token, s.values, width, head_dim);
        for (int row = 0; row < num_rows; row += PRODUCT_ROWS) {
            const View view = views.of_rows(row, row + PRODUCT_ROWS);
            if (view.end <= token || view.first >= end) continue;
            // What is behind the last token that is seen would add zeros.
            const int count = view.end - token < TILE_TOKENS ? padded(view.end - token, LANES)
                                                             : TILE_TOKENS;
            multiply<W, false>(s.queries + row * words, words, s.keys, TILE_TOKENS, count, words,
                               s.scores, TILE_TOKENS, nullptr);
            for (int r = 0; r < PRODUCT_ROWS; ++r) {
                const View own = views.of(row + r);
                if (own.first <= token && token + count <= own.end) continue;
                hide_unseen(s.scores + r * TILE_TOKENS, own, token, count);
            }
            float decays[PRODUCT_ROWS + LANES] = {};
            weigh_scores(s, row, count, scale, decays);
            multiply<W, true>(s.weights, tile_words, s.values, width, width, count / W::WIDTH,
                              s.out + row * width, width, decays);
        }
    }
    for (int row = 0; row < num_rows; ++row) {
        const int64_t token = start + chunk.first + row / group;
        const int64_t head = (int64_t)chunk.head * group + row % group;
        const float total = sum(s.sums[row]);
        const float factor = total == 0 ? 0 : 1 / total;  // zeros where nothing is seen
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
