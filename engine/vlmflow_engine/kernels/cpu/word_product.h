// Products of small matrices whose elements are words: floats, or pairs of bfloat16.

// PRODUCT_ROWS x PRODUCT_VECTORS sums, the vectors they are made of and one more fit in registers.
#if LANES == 16
enum { PRODUCT_ROWS = 6, PRODUCT_VECTORS = 4 };
#else
enum { PRODUCT_ROWS = 6, PRODUCT_VECTORS = 2 };
#endif

#define INLINE_MEMBER static inline __attribute__((always_inline))

// 4 rows of 4 words become 4 columns; rows are `stride` words apart in `out`.
typedef uint32_t Four __attribute__((vector_size(16)));
INLINE void transpose_four(Four a, Four b, Four c, Four d, uint32_t* out, int64_t stride) {
    const Four low1 = {0, 4, 1, 5}, high1 = {2, 6, 3, 7}, low2 = {0, 1, 4, 5}, high2 = {2, 3, 6, 7};
    const Four ab1 = __builtin_shuffle(a, b, low1), ab2 = __builtin_shuffle(a, b, high1);
    const Four cd1 = __builtin_shuffle(c, d, low1), cd2 = __builtin_shuffle(c, d, high1);
    const Four columns[4] = {
        __builtin_shuffle(ab1, cd1, low2), __builtin_shuffle(ab1, cd1, high2),
        __builtin_shuffle(ab2, cd2, low2), __builtin_shuffle(ab2, cd2, high2)};
    for (int i = 0; i < 4; ++i) memcpy(out + i * stride, &columns[i], 16);
}

// [TILE, words] of rows -> [words, tile]; rows outside [first, end) are zeros. `row` gives the
// words of a row: as many as there are, padded to four.
template <typename GetFour>
INLINE void transpose_rows(const GetFour& four_of, int first, int end, int num_tokens, uint32_t* out,
                           int words) {
    for (int t = 0; t < num_tokens; t += 4) {
        for (int w = 0; w < words; w += 4) {
            Four rows[4];
            for (int i = 0; i < 4; ++i) {
                const bool is_there = first <= t + i && t + i < end;
                rows[i] = is_there ? four_of.get(t + i - first, w) : Four{};
            }
            transpose_four(rows[0], rows[1], rows[2], rows[3], out + w * num_tokens + t,
                           num_tokens);
        }
    }
}

struct FloatWords {
    enum { WIDTH = 1 };
    typedef float Word;
    typedef float Element;
    typedef Vec Words;

    INLINE_MEMBER Words load_words(const Word* p) { return load(p); }
    INLINE_MEMBER Words broadcast(const Word* p) { return splat(*p); }
    INLINE_MEMBER Vec multiply_add(Vec total, Words a, Words b) { return total + a * b; }
    INLINE_MEMBER void store_two(float* place, Vec a, Vec b) {
        store(place, a);
        store(place + LANES, b);
    }

    template <typename T>
    static void pack_row(const T* row, float* out, int words, int head_dim) {
        for (int d = 0; d < words; ++d) out[d] = row && d < head_dim ? load_one(row + d) : 0;
    }

    template <typename T>
    struct FourOf {
        const T* const* rows;
        int head_dim;
        inline __attribute__((always_inline)) Four get(int row, int word) const {
            float four[4];
            for (int i = 0; i < 4; ++i) {
                four[i] = word + i < head_dim ? load_one(rows[row] + word + i) : 0;
            }
            Four words;
            memcpy(&words, four, 16);
            return words;
        }
    };
    template <typename T>
    static void pack_keys(const T* const* rows, int first, int end, float* out, int words,
                          int head_dim) {
        transpose_rows(FourOf<T>{rows, head_dim}, first, end, TILE_TOKENS, (uint32_t*)out, words);
    }

    template <typename T>
    static void pack_values(const T* const* rows, int first, int end, float* out, int width,
                            int head_dim) {
        for (int t = 0; t < TILE_TOKENS; ++t, out += width) {
            const bool is_there = first <= t && t < end;
            const T* row = is_there ? rows[t - first] : nullptr;
            int d = 0;
            for (; d + LANES <= head_dim; d += LANES) store(out + d, row ? load(row + d) : Vec{});
            for (; d < width; ++d) out[d] = row && d < head_dim ? load_one(row + d) : 0;
        }
    }
};

#ifdef VLMFLOW_HAS_DPBF16
struct PairWords {
    enum { WIDTH = 2 };
    typedef uint32_t Word;
    typedef bf16 Element;
    typedef __m512bh Words;

    INLINE_MEMBER Words load_words(const Word* p) { return load_raw<Words>(p); }
    INLINE_MEMBER Words broadcast(const Word* p) { return (Words)_mm512_set1_epi32((int)*p); }
    INLINE_MEMBER Vec multiply_add(Vec total, Words a, Words b) {
        return (Vec)_mm512_dpbf16_ps((__m512)total, a, b);
    }
    INLINE_MEMBER void store_two(Word* place, Vec a, Vec b) {
        const Words pairs = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
        memcpy(place, &pairs, sizeof pairs);
    }

    static void pack_row(const bf16* row, Word* out, int words, int head_dim) {
        memset(out, 0, words * sizeof(Word));
        if (row) memcpy(out, row, head_dim * sizeof(bf16));
    }

    struct FourOf {
        const bf16* const* rows;
        int head_dim;
        inline __attribute__((always_inline)) Four get(int row, int word) const {
            const int left = head_dim - 2 * word;
            if (left >= 8) return load_raw<Four>(rows[row] + 2 * word);
            Four words{};
            if (left > 0) memcpy(&words, rows[row] + 2 * word, left * sizeof(bf16));
            return words;
        }
    };
    static void pack_keys(const bf16* const* rows, int first, int end, Word* out, int words,
                          int head_dim) {
        transpose_rows(FourOf{rows, head_dim}, first, end, TILE_TOKENS, out, words);
    }

    static void pack_values(const bf16* const* rows, int first, int end, Word* out, int width,
                            int head_dim) {
        for (int t = 0; t < TILE_TOKENS; t += 2, out += width) {
            const bf16* even = first <= t && t < end ? rows[t - first] : nullptr;
            const bf16* odd = first <= t + 1 && t + 1 < end ? rows[t + 1 - first] : nullptr;
            int d = 0;
            for (; d + LANES <= head_dim; d += LANES) {
                const WordVec low = even ? (WordVec)load(even + d) : WordVec{};
                const WordVec high = odd ? (WordVec)load(odd + d) : WordVec{};
                const WordVec pairs = (low >> 16) | high;
                memcpy(out + d, &pairs, sizeof pairs);
            }
            for (; d < width; ++d) {
                const uint32_t low = even && d < head_dim ? even[d].bits : 0;
                const uint32_t high = odd && d < head_dim ? odd[d].bits : 0;
                out[d] = low | high << 16;
            }
        }
    }
};
typedef PairWords BestWords;
#else
typedef FloatWords BestWords;
#endif

// PRODUCT_ROWS rows of a, VECTORS vectors of columns.
template <typename W, int VECTORS>
static void multiply_block(const typename W::Word* a, int64_t a_stride, const typename W::Word* b,
                           int64_t b_stride, int depth, float* c, int64_t c_stride, bool adds) {
    Vec sums[PRODUCT_ROWS][VECTORS];
    for (int r = 0; r < PRODUCT_ROWS; ++r) {
        for (int v = 0; v < VECTORS; ++v) {
            sums[r][v] = adds ? load(c + r * c_stride + v * LANES) : Vec{};
        }
    }
    for (int k = 0; k < depth; ++k) {
        typename W::Words columns[VECTORS];
        for (int v = 0; v < VECTORS; ++v) columns[v] = W::load_words(b + k * b_stride + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < PRODUCT_ROWS; ++r) {
            const typename W::Words row = W::broadcast(a + r * a_stride + k);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) {
                sums[r][v] = W::multiply_add(sums[r][v], row, columns[v]);
            }
        }
    }
    for (int r = 0; r < PRODUCT_ROWS; ++r) {
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_stride + v * LANES, sums[r][v]);
    }
}

template <typename W, int VECTORS>
static void multiply_columns(const typename W::Word* a, int64_t a_stride, const typename W::Word* b,
                             int64_t b_stride, int depth, float* c, int64_t c_stride, int rows,
                             bool adds) {
    for (int r = 0; r < rows; r += PRODUCT_ROWS) {
        multiply_block<W, VECTORS>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride,
                                   c_stride, adds);
    }
}

// c = a b, or c += a b. a is [rows, depth] words, b [depth, columns] words, c [rows, columns]
// floats; rows are a multiple of PRODUCT_ROWS, columns of LANES.
template <typename W>
static void multiply(const typename W::Word* a, int64_t a_stride, const typename W::Word* b,
                     int columns, int depth, float* c, int rows, bool adds) {
    int column = 0;
    for (; column + PRODUCT_VECTORS * LANES <= columns; column += PRODUCT_VECTORS * LANES) {
        multiply_columns<W, PRODUCT_VECTORS>(a, a_stride, b + column, columns, depth, c + column,
                                             columns, rows, adds);
    }
    const int left = (columns - column) / LANES;
    b += column;
    c += column;
    if (PRODUCT_VECTORS > 3 && left == 3) {
        multiply_columns<W, 3>(a, a_stride, b, columns, depth, c, columns, rows, adds);
    } else if (PRODUCT_VECTORS > 2 && left == 2) {
        multiply_columns<W, 2>(a, a_stride, b, columns, depth, c, columns, rows, adds);
    } else if (left == 1) {
        multiply_columns<W, 1>(a, a_stride, b, columns, depth, c, columns, rows, adds);
    }
}
