// One token's queries turned, its keys turned and stored, its values stored; see store_kv.cpp.
// Products and sum are float, rounded once; what is quantised is the rounded row, as kv_quant.py
// does it, to the bit.

// Elements [0, count) of a head and, LANES at a time, of what goes with it.
#define FOR_VECTORS(d, count) for (; d + LANES <= (count); d += LANES)

// x * cos + [-x2, x1] * sin, of the halves [x1, x2] of a head.
template <typename T, typename A>
static void turn(const T* x, const A* cos, const A* sin, T* out, int head_dim) {
    const int half = head_dim / 2;
    int d = 0;
    FOR_VECTORS(d, half) {
        const Vec x1 = load(x + d), x2 = load(x + half + d);
        store(out + d, x1 * load(cos + d) - x2 * load(sin + d));
        store(out + half + d, x2 * load(cos + half + d) + x1 * load(sin + half + d));
    }
    for (; d < half; ++d) {
        const float x1 = load_one(x + d), x2 = load_one(x + half + d);
        store_one(out + d, x1 * load_one(cos + d) - x2 * load_one(sin + d));
        store_one(out + half + d, x2 * load_one(cos + half + d) + x1 * load_one(sin + half + d));
    }
}

// The bfloat16 next to x that is not on the other side of it than up, or down.
static float rounded_towards(float x, bool is_up) {
    bf16 nearest;
    store_one(&nearest, x);
    const float value = load_one(&nearest);
    if (!(is_up ? value < x : value > x)) return value;
    // Away from zero the bits go up, towards it down.
    const bool grows = (value > 0) == is_up;
    if (value == 0) {
        nearest.bits = is_up ? 0x0001 : 0x8001;
    } else {
        nearest.bits = (uint16_t)(nearest.bits + (grows ? 1 : -1));
    }
    return load_one(&nearest);
}

template <typename T>
static void store_codes(const T* x, uint8_t* codes, bf16* scales, int head_dim) {
    float low = load_one(x), high = low;
    bool is_number = true;
    for (int d = 0; d < head_dim; ++d) {
        const float value = load_one(x + d);
        low = value < low ? value : low;
        high = value > high ? value : high;
        is_number &= value == value;
    }
    if (!is_number) low = high = __builtin_nanf("");
    const float minimum = rounded_towards(low, false);
    const float scale = rounded_towards((high - minimum) / 255.0f, true);
    store_one(scales, scale);
    store_one(scales + 1, minimum);
    const float divisor = scale == 0 ? 1 : scale;
    const Vec shifter = splat(12582912.0f);  // rounds to whole numbers, ties to even
    int d = 0;
    FOR_VECTORS(d, head_dim) {
        const Vec whole = (load(x + d) - minimum) / divisor + shifter;
        const HalfVec halves = __builtin_convertvector((WordVec)whole & 0xFFu, HalfVec);
        const ByteVec code = __builtin_convertvector(halves, ByteVec);
        memcpy(codes + d, &code, sizeof code);
    }
    for (; d < head_dim; ++d) {
        const Vec whole = splat((load_one(x + d) - minimum) / divisor) + shifter;
        codes[d] = (uint8_t)((IntVec)whole)[0];
    }
}

template <typename T>
static void store_row(const T* x, char* rows, char* scales, int64_t row, const vlmflow::Cache& cache) {
    const int64_t place = row * cache.head_dim;
    if (cache.format == vlmflow::INT8) {
        store_codes(x, (uint8_t*)rows + place, (bf16*)scales + 2 * row, cache.head_dim);
    } else {
        memcpy((T*)rows + place, x, cache.head_dim * sizeof(T));
    }
}

template <typename T, typename A>
static void store_token_of(const vlmflow::Cache& cache, const vlmflow::Step& step,
                           const vlmflow::Call& call, int64_t token) {
    const int head_dim = cache.head_dim;
    const A* cos = call.cos ? (const A*)call.cos + token * call.angle_stride : nullptr;
    const A* sin = call.cos ? (const A*)call.sin + token * call.angle_stride : nullptr;
    if (cos) {
        const T* q = (const T*)call.q + token * call.q_token_stride;
        T* turned = (T*)call.out + token * call.num_heads * head_dim;
        for (int head = 0; head < call.num_heads; ++head) {
            turn(q + head * call.q_head_stride, cos, sin, turned + head * head_dim, head_dim);
        }
    }
    const int64_t slot = step.slot_mapping[token];
    if (slot < 0) return;
    const T* k = (const T*)call.k + token * call.k_token_stride;
    const T* v = (const T*)call.v + token * call.v_token_stride;
    T turned[vlmflow::MAX_HEAD_DIM];
    for (int head = 0; head < cache.num_kv_heads; ++head) {
        const int64_t row = slot * cache.num_kv_heads + head;
        const T* key = k + head * call.k_head_stride;
        if (cos) {
            turn(key, cos, sin, turned, head_dim);
            key = turned;
        }
        store_row(key, cache.keys, cache.key_scales, row, cache);
        store_row(v + head * call.v_head_stride, cache.values, cache.value_scales, row, cache);
    }
}

static void store_token(const vlmflow::Cache& cache, const vlmflow::Step& step,
                        const vlmflow::Call& call, int64_t token) {
    if (!call.is_bfloat16) {
        store_token_of<float, float>(cache, step, call, token);
    } else if (call.has_float_angles) {
        store_token_of<bf16, float>(cache, step, call, token);
    } else {
        store_token_of<bf16, bf16>(cache, step, call, token);
    }
}

#undef FOR_VECTORS
