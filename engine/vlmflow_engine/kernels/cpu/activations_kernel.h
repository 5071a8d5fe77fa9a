// A run of elements through an activation; see activations.cpp. Computed in float, rounded once.

// 1 / (1 + e^-x); the power is taken of what is negative, so nothing overflows.
INLINE Vec sigmoid(Vec x) {
    const Vec e = exp2_of_negative((x < 0 ? x : -x) * 1.44269504f);
    const Vec share = 1.0f / (1.0f + e);
    return x < 0 ? e * share : share;
}

template <int NAME>
INLINE Vec activate(Vec x) {
    if (NAME == vlmflow::SILU) return x * sigmoid(x);
    if (NAME == vlmflow::QUICK_GELU) return x * sigmoid(x * 1.702f);
    // (1 + tanh(y)) / 2 is sigmoid(2 y); y is sqrt(2 / pi) (x + 0.044715 x^3).
    return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
}

// A register's worth from a few elements; the rest are zeros.
template <typename T>
INLINE Vec load_some(const T* x, int count) {
    T values[LANES] = {};
    memcpy(values, x, count * sizeof(T));
    return load(values);
}

template <typename T>
INLINE void store_some(T* out, Vec x, int count) {
    T values[LANES];
    store(values, x);
    memcpy(out, values, count * sizeof(T));
}

template <int NAME, typename T>
static void activate_run(const T* x, const T* up, T* out, int64_t size) {
    int64_t d = 0;
    for (; d + LANES <= size; d += LANES) {
        const Vec value = activate<NAME>(load(x + d));
        store(out + d, up ? value * load(up + d) : value);
    }
    if (d < size) {
        const int count = (int)(size - d);
        const Vec value = activate<NAME>(load_some(x + d, count));
        store_some(out + d, up ? value * load_some(up + d, count) : value, count);
    }
}

template <typename T>
static void activate_row_of(const vlmflow::Activation& act, int64_t row) {
    const T* x = (const T*)act.x + row * act.x_stride;
    const T* up = act.is_gated ? x + act.size : nullptr;
    T* out = (T*)act.out + row * act.size;
    switch (act.name) {
        case vlmflow::SILU: activate_run<vlmflow::SILU>(x, up, out, act.size); break;
        case vlmflow::QUICK_GELU: activate_run<vlmflow::QUICK_GELU>(x, up, out, act.size); break;
        default: activate_run<vlmflow::GELU_TANH>(x, up, out, act.size);
    }
}

static void activate_row(const vlmflow::Activation& act, int64_t row) {
    if (act.is_bfloat16) {
        activate_row_of<bf16>(act, row);
    } else {
        activate_row_of<float>(act, row);
    }
}
