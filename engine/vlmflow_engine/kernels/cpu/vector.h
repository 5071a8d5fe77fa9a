// Vectors of LANES floats in the compiler's own notation, which is the same for every level.
// Included once for each level, in its namespace: no include guard.

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t WordVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

#define INLINE static inline __attribute__((always_inline))

// A bfloat16 in memory: the upper half of a float.
struct bf16 {
    uint16_t bits;
};

INLINE Vec splat(float x) { return x - Vec{}; }

template <typename V, typename T>
INLINE V load_raw(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE Vec load(const float* p) { return load_raw<Vec>(p); }

// Small unsigned numbers, made wide. GCC has no single instruction for it but by name.
#if LANES == 16
INLINE WordVec widened(const uint16_t* p) {
    return (WordVec)_mm512_cvtepu16_epi32(load_raw<__m256i>(p));
}
INLINE WordVec widened(const uint8_t* p) {
    return (WordVec)_mm512_cvtepu8_epi32(load_raw<__m128i>(p));
}
INLINE HalfVec narrowed(WordVec x) { return (HalfVec)_mm512_cvtepi32_epi16((__m512i)x); }
#elif LANES == 8
INLINE WordVec widened(const uint16_t* p) {
    return (WordVec)_mm256_cvtepu16_epi32(load_raw<__m128i>(p));
}
INLINE WordVec widened(const uint8_t* p) {
    return (WordVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
INLINE HalfVec narrowed(WordVec x) { return __builtin_convertvector(x, HalfVec); }
#else
INLINE WordVec widened(const uint16_t* p) {
    return __builtin_convertvector(load_raw<HalfVec>(p), WordVec);
}
INLINE WordVec widened(const uint8_t* p) {
    const HalfVec halves = __builtin_convertvector(load_raw<ByteVec>(p), HalfVec);
    return __builtin_convertvector(halves, WordVec);
}
INLINE HalfVec narrowed(WordVec x) { return __builtin_convertvector(x, HalfVec); }
#endif

INLINE Vec load(const bf16* p) { return (Vec)(widened(&p->bits) << 16); }
INLINE Vec load(const uint8_t* p) { return __builtin_convertvector((IntVec)widened(p), Vec); }

// The nearest bfloat16s, ties to even, as torch rounds; a NaN stays one.
INLINE WordVec rounded_bits(Vec x) {
    const WordVec bits = (WordVec)x;
    const WordVec rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return x == x ? rounded : (WordVec{} + 0x7FC0u);
}

INLINE void store(float* p, Vec x) { memcpy(p, &x, sizeof x); }
INLINE void store(bf16* p, Vec x) {
    const HalfVec h = narrowed(rounded_bits(x));
    memcpy(p, &h, sizeof h);
}

INLINE float load_one(const float* p) { return *p; }
INLINE float load_one(const bf16* p) {
    const uint32_t bits = (uint32_t)p->bits << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
INLINE float load_one(const uint8_t* p) { return (float)*p; }

INLINE void store_one(float* p, float x) { *p = x; }
INLINE void store_one(bf16* p, float x) { p->bits = (uint16_t)rounded_bits(splat(x))[0]; }

// b where one is NaN: a maximum may leave it out, what is made with it must not.
INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

// Lane l of the result is lane l ^ H of x.
template <int H, int... L>
INLINE Vec exchange(Vec x) {
    const IntVec order = {(L ^ H)...};
    return __builtin_shuffle(x, order);
}

// In a tree, always the same one, whatever the rest of the step holds.
INLINE float sum(Vec x) {
#if LANES == 16
    x += exchange<8, LANE_LIST>(x);
#endif
#if LANES >= 8
    x += exchange<4, LANE_LIST>(x);
#endif
    x += exchange<2, LANE_LIST>(x);
    x += exchange<1, LANE_LIST>(x);
    return x[0];
}
INLINE float largest(Vec x) {
#if LANES == 16
    x = maximum(x, exchange<8, LANE_LIST>(x));
#endif
#if LANES >= 8
    x = maximum(x, exchange<4, LANE_LIST>(x));
#endif
    x = maximum(x, exchange<2, LANE_LIST>(x));
    x = maximum(x, exchange<1, LANE_LIST>(x));
    return x[0];
}

// 2^x for x <= 0 to 2 units in the last place; 0 below -126, and for -infinity. NaN for NaN.
INLINE Vec exp2_of_negative(Vec x) {
    const Vec lowest = splat(-126.0f);
    const Vec bounded = x < lowest ? lowest : x;
    // x = n + r, |r| <= 1/2; adding 1.5 * 2^23 rounds to whole numbers.
    const Vec shifter = splat(12582912.0f);
    const Vec shifted = bounded + shifter;
    const Vec r = bounded - (shifted - shifter);
    Vec p = splat(1.535336188319500e-4f);
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    p = p * r + 1.0f;
    const Vec power = (Vec)(((IntVec)shifted - 0x4B400000 + 127) << 23);
    return x < lowest ? Vec{} : p * power;
}

#if LANES == 16
// The same to 2^-18, which is enough for what becomes a bfloat16.
INLINE Vec rough_exp2_of_negative(Vec x) {
    const __m512 bounded = (__m512)maximum(splat(-150.0f), x);  // infinity has no fraction
    const __m512 whole = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT);
    const Vec r = (Vec)bounded - (Vec)whole;
    Vec p = splat(9.582853110e-3f);
    p = p * r + 5.590642469e-2f;
    p = p * r + 2.402409861e-1f;
    p = p * r + 6.931241934e-1f;
    p = p * r + 1.0f;
    return (Vec)_mm512_scalef_ps((__m512)p, whole);
}
#endif

// Lane l of the result: lanes l and l ^ H of a where l has no bit H, else of b, added up.
template <int H, int... L>
INLINE Vec fold(Vec a, Vec b) {
    const IntVec straight = {((L & H) ? LANES + L : L)...};
    const IntVec crossed = {((L & H) ? LANES + L - H : L + H)...};
    return __builtin_shuffle(a, b, straight) + __builtin_shuffle(a, b, crossed);
}

// The sums of LANES vectors, in the lanes of one. What is in `v` is lost.
INLINE Vec sums_of(Vec* v) {
#if LANES == 16
    for (int i = 0; i < 8; ++i) v[i] = fold<8, LANE_LIST>(v[i], v[i + 8]);
#endif
#if LANES >= 8
    for (int i = 0; i < 4; ++i) v[i] = fold<4, LANE_LIST>(v[i], v[i + 4]);
#endif
    for (int i = 0; i < 2; ++i) v[i] = fold<2, LANE_LIST>(v[i], v[i + 2]);
    return fold<1, LANE_LIST>(v[0], v[1]);
}
