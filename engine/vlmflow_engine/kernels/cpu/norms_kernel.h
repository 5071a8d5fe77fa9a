// A row's norm; see norms.cpp. Sums are float, always in the same order.

// The root mean square norm of total = x + residual, which is kept rounded as later layers get it.
template <typename T>
static void rms_norm_row(const T* x, const T* residual, const T* weight, T* total, T* out,
                         int size, float eps) {
    Vec squares{};
    float more = 0;
    int d = 0;
    for (; d + LANES <= size; d += LANES) {
        Vec value = load(x + d);
        if (residual) {
            store(total + d, value + load(residual + d));
            value = load(total + d);
        }
        squares += value * value;
    }
    for (; d < size; ++d) {
        float value = load_one(x + d);
        if (residual) {
            store_one(total + d, value + load_one(residual + d));
            value = load_one(total + d);
        }
        more += value * value;
    }
    const float scale = 1 / sqrtf((sum(squares) + more) / (float)size + eps);
    const T* row = residual ? total : x;
    for (d = 0; d + LANES <= size; d += LANES) {
        store(out + d, load(row + d) * scale * load(weight + d));
    }
    for (; d < size; ++d) store_one(out + d, load_one(row + d) * scale * load_one(weight + d));
}

// (x - mean) / sqrt(variance + eps) * weight + bias. The mean is known before deviations are
// squared, so nothing is lost where it is large.
template <typename T>
static void layer_norm_row(const T* x, const T* weight, const T* bias, T* out, int size,
                           float eps) {
    Vec sums{};
    float more = 0;
    int d = 0;
    for (; d + LANES <= size; d += LANES) sums += load(x + d);
    for (; d < size; ++d) more += load_one(x + d);
    const float mean = (sum(sums) + more) / (float)size;
    sums = Vec{};
    more = 0;
    for (d = 0; d + LANES <= size; d += LANES) {
        const Vec deviation = load(x + d) - mean;
        sums += deviation * deviation;
    }
    for (; d < size; ++d) more += (load_one(x + d) - mean) * (load_one(x + d) - mean);
    const float scale = 1 / sqrtf((sum(sums) + more) / (float)size + eps);
    for (d = 0; d + LANES <= size; d += LANES) {
        store(out + d, (load(x + d) - mean) * scale * load(weight + d) + load(bias + d));
    }
    for (; d < size; ++d) {
        const float value = (load_one(x + d) - mean) * scale * load_one(weight + d);
        store_one(out + d, value + load_one(bias + d));
    }
}

template <typename T>
static void norm_row_of(const vlmflow::Norm& norm, int64_t row) {
    const int64_t outer = row / norm.inner, inner = row % norm.inner, size = norm.size;
    const T* x = (const T*)norm.x + outer * norm.x_outer_stride + inner * norm.x_inner_stride;
    const T* weight = (const T*)norm.weight;
    T* out = (T*)norm.out + row * size;
    if (norm.bias) {
        layer_norm_row(x, weight, (const T*)norm.bias, out, (int)size, norm.eps);
    } else if (norm.residual) {
        rms_norm_row(x, (const T*)norm.residual + row * size, weight, (T*)norm.total + row * size,
                     out, (int)size, norm.eps);
    } else {
        rms_norm_row<T>(x, nullptr, weight, nullptr, out, (int)size, norm.eps);
    }
}

static void norm_row(const vlmflow::Norm& norm, int64_t row) {
    if (norm.is_bfloat16) {
        norm_row_of<bf16>(norm, row);
    } else {
        norm_row_of<float>(norm, row);
    }
}
