// What is done to rows one by one: embedding, LayerNorm, activation.

#define ROW_THREADS 256
#define ROW_WARPS (ROW_THREADS / 32)

// Element i of a row of a matrix of `count` rows.
DEVICE float weight_of(const WeightRows *matrix, const weight *from, unsigned i, unsigned row, unsigned count) {
#if WEIGHTS == 8
    return from[i] * from_bf16(matrix->scales[(unsigned long long)(i / WEIGHT_SLICE) * count + row]);
#else
    (void)matrix, (void)row, (void)count;
    return widen(from[i]);
#endif
}

KERNEL(embed, ROW_THREADS, EmbedArguments) {
    IN_TURN();
    const unsigned row = blockIdx.x, token = a.tokens[row] - a.first_token;
    const weight *from = a.embedding.rows + (unsigned long long)token * a.stride;
    const float *position = a.position_embedding + (unsigned long long)a.positions[row] * a.width;
    float *x = a.x + (unsigned long long)row * a.width;
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) {
        // A token of another rank is above every local one, also where the difference wraps.
        const float value = token < a.tokens_local ? weight_of(&a.embedding, from, i, token, a.tokens_local) : 0.0f;
        x[i] = a.position_embedding ? value + position[i] : value;
    }
}

// What a lane has of the longest unit of inputs that has a scale: a head.
#define UNIT_HELD 4

// What a lane has of a row at a time: values 32 apart, which it asks for together. Wider rows are read again for each pass over them.
#if ELEMENT == 32
#define HELD 32
#else
#define HELD 64
#endif

// Of values that begin at `begin`, zeros behind the row.
DEVICE void load_held(const float *row, unsigned begin, unsigned width, float *to) {
    UNROLL for (int j = 0; j < HELD; j++) {
        const unsigned i = begin + 32 * j;
        to[j] = i < width ? row[i] : 0.0f;
    }
}

// Value i of a norm.
DEVICE float normed(const Norm *a, float x, unsigned i, float mean, float scale) {
    const float gain = a->gain ? a->gain[i] : 1.0f, shift = a->shift ? a->shift[i] : 0.0f;
    return (x - mean) * scale * gain + shift;
}

// Writes the norm of a row, by a warp: (x − mean) / sqrt(variance + epsilon) · gain + shift, in two passes over f32; of an RMSNorm the
// mean is taken for 0. What lies behind it up to its stride becomes zero. Of bytes each slice has a scale.
DEVICE void normalise(const Norm *a, unsigned row, weight *out, float *scales, unsigned stride) {
    const unsigned lane = threadIdx.x % 32, width = a->width;
    const int is_held = width <= 32 * HELD;
    const float *from = a->x + (unsigned long long)(a->rows ? a->rows[row] : row) * width;
    float x[HELD], sum = 0.0f, squares = 0.0f;
    ROLLED for (unsigned begin = lane; begin < width; begin += 32 * HELD) {
        load_held(from, begin, width, x);
        UNROLL for (int j = 0; j < HELD; j++) sum += x[j];
    }
    sum = warp_sum(sum);
    const float mean = a->is_centred ? sum / width : 0.0f;
    ROLLED for (unsigned begin = lane; begin < width; begin += 32 * HELD) {
        if (!is_held) load_held(from, begin, width, x);
        UNROLL for (int j = 0; j < HELD; j++) {
            const float difference = begin + 32 * j < width ? x[j] - mean : 0.0f;
            squares += difference * difference;
        }
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / width + a->epsilon);
    ROLLED for (unsigned first = 0; first < width; first += 32 * HELD) {
        const unsigned begin = first + lane;
        if (!is_held) load_held(from, begin, width, x);
#if WEIGHTS == 8
        UNROLL for (int j = 0; j < HELD; j += 2) {
            const unsigned i = begin + 32 * j;
            if (i >= stride) continue;
            const float one = i < width ? normed(a, x[j], i, mean, scale) : 0.0f;
            const float other = i + 32 < width ? normed(a, x[j + 1], i + 32, mean, scale) : 0.0f;
            const float largest = warp_max(fmaxf(fabsf(one), fabsf(other))), inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
            out[i] = to_byte(one, inverse);
            out[i + 32] = to_byte(other, inverse);
            if (lane == 0) scales[i / WEIGHT_SLICE] = largest / 127.0f;
        }
    }
#else
        (void)scales;
        UNROLL for (int j = 0; j < HELD; j++) {
            const unsigned i = begin + 32 * j;
            if (i < width) out[i] = narrow(normed(a, x[j], i, mean, scale));
        }
    }
    for (unsigned i = width + lane; i < stride; i += 32) out[i] = narrow(0.0f);
#endif
}

// Of rows for products of many; of few, `project` does it by itself. A block takes as many as it has warps.
KERNEL(layer_norm, ROW_THREADS, NormArguments) {
    IN_TURN();
    const unsigned row = ROW_WARPS * blockIdx.x + threadIdx.x / 32;
    if (row >= a.count) return;
    const unsigned long long at = (unsigned long long)row * a.stride;
    normalise(&a.norm, row, a.out + at, a.scales + at / WEIGHT_SLICE, a.stride);
}

#if WEIGHTS == 8

// A warp a unit of a row.
KERNEL(quantise, ROW_THREADS, QuantiseArguments) {
    IN_TURN();
    const unsigned row = blockIdx.x, unit = ROW_WARPS * blockIdx.y + threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned first = unit * a.unit, slices = (a.unit + WEIGHT_SLICE - 1) / WEIGHT_SLICE;
    if (first >= a.width) return;
    const unsigned count = a.width - first < a.unit ? a.width - first : a.unit;
    const float *x = a.x + (unsigned long long)row * a.x_stride + first;
    const unsigned long long at = (unsigned long long)row * a.stride + unit * slices * WEIGHT_SLICE;
    float held[UNIT_HELD], largest = 0.0f;
    UNROLL for (int j = 0; j < UNIT_HELD; j++) {
        held[j] = lane + 32 * j < count ? x[lane + 32 * j] : 0.0f;
        largest = fmaxf(largest, fabsf(held[j]));
    }
    largest = warp_max(largest);
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    UNROLL for (int j = 0; j < UNIT_HELD; j++)
        if (lane + 32 * j < slices * WEIGHT_SLICE) a.out[at + lane + 32 * j] = to_byte(held[j], inverse);
    if (lane < slices) a.scales[at / WEIGHT_SLICE + lane] = largest / 127.0f;
}

#endif

DEVICE float activated(float x, unsigned activation) {
    switch (activation) {
    case 0: return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case 1: return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
    case 2: return x / (1.0f + expf(-1.702f * x));
    case 3: return fmaxf(x, 0.0f);
    case 4: return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
    case 5: return x / (1.0f + expf(-x));
    default: return tanhf(x);
    }
}
