// Rows of some tokens of a sequence, for one KV head: where they lie, whatever pages they are on.

template <typename K, bool HAS_CODES, int SIZE>
struct RowTile {
    const K* rows[SIZE];
    alignas(64) K decoded[HAS_CODES ? SIZE * vlmflow::MAX_HEAD_DIM : 1];

    // Tokens [first, first + count); behind them the last one again, up to whole vectors of tokens,
    // so that what is not seen is not read.
    void find(const vlmflow::Places& places, int32_t first, int count, const char* base,
              const char* scales, int head_dim) {
        for (int t = 0; t < count;) {
            const int32_t offset = (first + t) % places.block_size;
            const int32_t left = places.block_size - offset;
            const int end = count - t < left ? count : t + left;
            int64_t row = places.row(first + t);
            for (; t < end; ++t, row += places.num_kv_heads) {
                if constexpr (HAS_CODES) {
                    K* place = decoded + t * head_dim;
                    decode((const uint8_t*)base + row * head_dim, (const bf16*)scales + 2 * row,
                           place, head_dim);
                    rows[t] = place;
                } else {
                    rows[t] = (const K*)base + row * head_dim;
                }
            }
        }
        for (int t = count; t % LANES; ++t) rows[t] = rows[count - 1];
    }

    // Have tokens [first, end) read from memory while others are computed: rows of one head lie too
    // far apart for the CPU to guess which come next. Inlined: GCC 12 leaves out calls of a function
    // that does nothing else (its PR 109985).
    static inline __attribute__((always_inline)) void prefetch(const vlmflow::Places& places,
                                                               int32_t first, int32_t end,
                                                               const char* base, int head_dim) {
        const int64_t num_bytes = head_dim * (HAS_CODES ? 1 : sizeof(K));
        for (int32_t token = first; token < end;) {
            const int32_t left = places.block_size - token % places.block_size;
            const int32_t last = end - token < left ? end : token + left;
            const char* row = base + places.row(token) * num_bytes;
            for (; token < last; ++token, row += places.num_kv_heads * num_bytes) {
                for (int64_t b = 0; b < num_bytes; b += 64) __builtin_prefetch(row + b);
            }
        }
    }

    static void decode(const uint8_t* codes, const bf16* scales, K* out, int head_dim) {
        const float scale = load_one(scales), minimum = load_one(scales + 1);
        int d = 0;
        for (; d + LANES <= head_dim; d += LANES) store(out + d, load(codes + d) * scale + minimum);
        for (; d < head_dim; ++d) store_one(out + d, load_one(codes + d) * scale + minimum);
    }
};

// A row of the output, scaled.
template <typename Q>
static void write_row(Q* out, const float* row, float factor, int head_dim) {
    int d = 0;
    for (; d + LANES <= head_dim; d += LANES) store(out + d, load(row + d) * factor);
    for (; d < head_dim; ++d) store_one(out + d, row[d] * factor);
}
