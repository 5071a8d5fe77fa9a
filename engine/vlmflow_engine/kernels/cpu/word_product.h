// Products of small matrices whose elements are words: floats, or pairs of bfloat16.

// PRODUCT_ROWS x PRODUCT_VECTORS sums, the vectors they are made of and one more fit in registers.
#if LANES == 16
enum { PRODUCT_ROWS = 6, PRODUCT_VECTORS = 4 };
#else
enum { PRODUCT_ROWS = 6, PRODUCT_VECTORS = 2 };
#endif

#define INLINE_MEMBER static inline __attribute__((always_inline))

// Four words of LANES rows become four vectors of a word each: 4 x 4 transpositions side by side,
// of rows that are LANES / 4 quarters of a vector.
typedef uint32_t Four __attribute__((vector_size(16)));
INLINE WordVec joined(const Four* quarters) {
#if LANES == 16
    __m512i all = _mm512_castsi128_si512((__m128i)quarters[0]);
    all = _mm512_inserti32x4(all, (__m128i)quarters[4], 1);
    all = _mm512_inserti32x4(all, (__m128i)quarters[8], 2);
    return (WordVec)_mm512_inserti32x4(all, (__m128i)quarters[12], 3);
#elif LANES == 8
    const __m256i low = _mm256_castsi128_si256((__m128i)quarters[0]);
    return (WordVec)_mm256_inserti128_si256(low, (__m128i)quarters[4], 1);
#else
    return quarters[0];
#endif
}
// Of every 4 lanes 0, 1 (OFFSET 0) or 2, 3 (OFFSET 2) of a and of b: in turns, or as pairs.
template <int OFFSET, int... L>
INLINE WordVec in_turns(WordVec a, WordVec b) {
    const WordVec order = {((L & 1) * LANES + (L & ~3) + OFFSET + (L >> 1 & 1))...};
    return __builtin_shuffle(a, b, order);
}
template <int OFFSET, int... L>
INLINE WordVec in_pairs(WordVec a, WordVec b) {
    const WordVec order = {((L >> 1 & 1) * LANES + (L & ~3) + OFFSET + (L & 1))...};
    return __builtin_shuffle(a, b, order);
}
INLINE void transpose_fours(const Four* rows, uint32_t* out, int64_t stride) {
    const WordVec a = joined(rows), b = joined(rows + 1), c = joined(rows + 2), d = joined(rows + 3);
    const WordVec ab1 = in_turns<0, LANE_LIST>(a, b), ab2 = in_turns<2, LANE_LIST>(a, b);
    const WordVec cd1 = in_turns<0, LANE_LIST>(c, d), cd2 = in_turns<2, LANE_LIST>(c, d);
    const WordVec columns[4] = {in_pairs<0, LANE_LIST>(ab1, cd1), in_pairs<2, LANE_LIST>(ab1, cd1),
                                in_pairs<0, LANE_LIST>(ab2, cd2), in_pairs<2, LANE_LIST>(ab2, cd2)};
    for (int i = 0; i < 4; ++i) memcpy(out + i * stride, &columns[i], sizeof columns[i]);
}

// Rows of tokens [first, end) of a tile become its columns: [words, TILE_TOKENS]. Where a token is
// not among them another one stands: its scores are hidden. `four_of` gives words of a row: as many
// as there are, padded to four.
template <typename GetFour, typename T>
INLINE void transpose_rows(const GetFour& four_of, const T* const* rows, int first, int end,
                           uint32_t* out, int words) {
    for (int t = 0; t < TILE_TOKENS; t += LANES) {
        const T* own[LANES];
        for (int i = 0; i < LANES; ++i) {
            const int index = t + i < end ? t + i - first : end - 1 - first;
            own[i] = rows[index > 0 ? index : 0];
        }
        for (int w = 0; w < words; w += 4) {
            Four fours[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) fours[i] = four_of.get(own[i], w);
            transpose_fours(fours, out + w * TILE_TOKENS + t, TILE_TOKENS);
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
    INLINE_MEMBER Vec exp2(Vec x) { return exp2_of_negative(x); }
    INLINE_MEMBER void store_two(float* place, Vec a, Vec b) {
        store(place, a);
        store(place + LANES, b);
    }

    template <typename T>
    static void pack_row(const T* row, float* out, int words, int head_dim) {
        for (int d = 0; d < words; ++d) out[d] = row && d < head_dim ? load_one(row + d) : 0;
    }

    struct FourOf {
        int head_dim;
        template <typename T>
        inline __attribute__((always_inline)) Four get(const T* row, int word) const {
            float four[4];
            for (int i = 0; i < 4; ++i) four[i] = word + i < head_dim ? load_one(row + word + i) : 0;
            Four words;
            memcpy(&words, four, 16);
            return words;
        }
    };
    template <typename T>
    static void pack_keys(const T* const* rows, int first, int end, float* out, int words,
                          int head_dim) {
        transpose_rows(FourOf{head_dim}, rows, first, end, (uint32_t*)out, words);
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
    INLINE_MEMBER Vec exp2(Vec x) { return rough_exp2_of_negative(x); }
    INLINE_MEMBER void store_two(Word* place, Vec a, Vec b) {
        const Words pairs = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
        memcpy(place, &pairs, sizeof pairs);
    }

    static void pack_row(const bf16* row, Word* out, int words, int head_dim) {
        int word = 0;
        if (row) {
            for (; 2 * (word + LANES) <= head_dim; word += LANES) {
                const Words pairs = load_raw<Words>(row + 2 * word);
                memcpy(out + word, &pairs, sizeof pairs);
            }
        }
        for (; word < words; ++word) {
            const uint32_t low = row && 2 * word < head_dim ? row[2 * word].bits : 0;
            const uint32_t high = row && 2 * word + 1 < head_dim ? row[2 * word + 1].bits : 0;
            out[word] = low | high << 16;
        }
    }

    struct FourOf {
        int head_dim;
        inline __attribute__((always_inline)) Four get(const bf16* row, int word) const {
            const int left = head_dim - 2 * word;
            if (left >= 8) return load_raw<Four>(row + 2 * word);
            Four words{};
            if (left > 0) memcpy(&words, row + 2 * word, left * sizeof(bf16));
            return words;
        }
    };
    static void pack_keys(const bf16* const* rows, int first, int end, Word* out, int words,
                          int head_dim) {
        transpose_rows(FourOf{head_dim}, rows, first, end, out, words);
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
template <typename W, int VECTORS, bool ADDS>
static void multiply_columns(const typename W::Word* a, int64_t a_stride, const typename W::Word* b,
                             int64_t b_stride, int depth, float* c, int64_t c_stride,
                             const float* factors) {
    Vec sums[PRODUCT_ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < PRODUCT_ROWS; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            sums[r][v] = ADDS ? load(c + r * c_stride + v * LANES) * factors[r] : Vec{};
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
#pragma GCC unroll 6
    for (int r = 0; r < PRODUCT_ROWS; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_stride + v * LANES, sums[r][v]);
    }
}

// PRODUCT_ROWS rows of c = a b, or with ADDS of c = factors c + a b, a factor for each row. a is
// [rows, depth] words, b [depth, columns] words, c [rows, columns] floats; columns are a multiple of
// LANES.
template <typename W, bool ADDS>
static void multiply(const typename W::Word* a, int64_t a_stride, const typename W::Word* b,
                     int64_t b_stride, int columns, int depth, float* c, int64_t c_stride,
                     const float* factors) {
    int column = 0;
    for (; column + PRODUCT_VECTORS * LANES <= columns; column += PRODUCT_VECTORS * LANES) {
        multiply_columns<W, PRODUCT_VECTORS, ADDS>(a, a_stride, b + column, b_stride, depth,
                                                   c + column, c_stride, factors);
    }
    const int left = (columns - column) / LANES;
    b += column;
    c += column;
    if (PRODUCT_VECTORS > 3 && left == 3) {
        multiply_columns<W, 3, ADDS>(a, a_stride, b, b_stride, depth, c, c_stride, factors);
    } else if (PRODUCT_VECTORS > 2 && left == 2) {
        multiply_columns<W, 2, ADDS>(a, a_stride, b, b_stride, depth, c, c_stride, factors);
    } else if (left == 1) {
        multiply_columns<W, 1, ADDS>(a, a_stride, b, b_stride, depth, c, c_stride, factors);
    }
}
