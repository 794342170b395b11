// What is done to rows one by one: embedding, LayerNorm, activation. One block a row.

#define ROW_THREADS 256
#define ROW_WARPS (ROW_THREADS / 32)
#define MOST_ROWS 16

KERNEL(embed, ROW_THREADS, EmbedArguments) {
    const unsigned row = blockIdx.x, token = a.tokens[row] - a.first_token;
    const element *from = a.embedding + (unsigned long long)token * a.stride;
    const float *position = a.position_embedding + (unsigned long long)a.positions[row] * a.width;
    float *x = a.x + (unsigned long long)row * a.width;
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) {
        // A token of another rank is above every local one, also where the difference wraps.
        const float value = token < a.tokens_local ? widen(from[i]) : 0.0f;
        x[i] = a.position_embedding ? value + position[i] : value;
    }
}

// Adds up what each warp has of a row, in one order.
DEVICE float sum_of_warps(const float *parts) {
    float sum = 0.0f;
    UNROLL for (int warp = 0; warp < ROW_WARPS; warp++) sum += parts[warp];
    return sum;
}

// What a thread has of a row at a time: values ROW_THREADS apart, which it asks for together. Zeros behind the row.
#define ROUND 8

DEVICE void load_round(const float *row, unsigned begin, unsigned width, float *to) {
    UNROLL for (int j = 0; j < ROUND; j++) {
        const unsigned i = begin + ROW_THREADS * j;
        to[j] = i < width ? row[i] : 0.0f;
    }
}

DEVICE const float *row_of(const Norm *a, unsigned row) {
    return a->x + (unsigned long long)(a->rows ? a->rows[row] : row) * a->width;
}

// Writes the LayerNorm of up to MOST_ROWS rows from `first` on, by a block of ROW_THREADS: (x − mean) / sqrt(variance + epsilon) ·
// gain + shift, in two passes over f32. What lies behind a row up to its stride becomes zero.
DEVICE void normalise(const Norm *a, unsigned first, unsigned count, element *out, unsigned stride) {
    SHARED float sums[MOST_ROWS][ROW_WARPS], squares[MOST_ROWS][ROW_WARPS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, width = a->width, step = ROW_THREADS * ROUND;
    float x[ROUND], gain[ROUND], shift[ROUND];
    for (unsigned r = 0; r < count; r++) {
        float sum = 0.0f;
        for (unsigned begin = threadIdx.x; begin < width; begin += step) {
            load_round(row_of(a, first + r), begin, width, x);
            UNROLL for (int j = 0; j < ROUND; j++) sum += x[j];
        }
        sum = warp_sum(sum);
        if (lane == 0) sums[r][warp] = sum;
    }
    BARRIER();
    for (unsigned r = 0; r < count; r++) {
        const float mean = sum_of_warps(sums[r]) / width;
        float sum = 0.0f;
        for (unsigned begin = threadIdx.x; begin < width; begin += step) {
            load_round(row_of(a, first + r), begin, width, x);
            UNROLL for (int j = 0; j < ROUND; j++) {
                const float difference = begin + ROW_THREADS * j < width ? x[j] - mean : 0.0f;
                sum += difference * difference;
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[r][warp] = sum;
    }
    BARRIER();
    for (unsigned begin = threadIdx.x; begin < width; begin += step) {
        load_round(a->gain, begin, width, gain);
        load_round(a->shift, begin, width, shift);
        for (unsigned r = 0; r < count; r++) {
            const float mean = sum_of_warps(sums[r]) / width;
            const float scale = 1.0f / sqrtf(sum_of_warps(squares[r]) / width + a->epsilon);
            load_round(row_of(a, first + r), begin, width, x);
            UNROLL for (int j = 0; j < ROUND; j++) {
                const unsigned i = begin + ROW_THREADS * j;
                if (i < width) out[r * stride + i] = narrow((x[j] - mean) * scale * gain[j] + shift[j]);
            }
        }
    }
    const unsigned behind = stride - width;
    for (unsigned i = threadIdx.x; i < count * behind; i += ROW_THREADS)
        out[i / behind * stride + width + i % behind] = narrow(0.0f);
}

// LayerNorm of x; then x += bias, of the projection whose product will be added to it.
KERNEL(layer_norm, ROW_THREADS, NormArguments) {
    normalise(&a.norm, blockIdx.x, 1, a.out + (unsigned long long)blockIdx.x * a.stride, a.stride);
    float *x = a.norm.x + (unsigned long long)blockIdx.x * a.norm.width;
    for (unsigned i = threadIdx.x; a.bias && i < a.norm.width; i += ROW_THREADS) x[i] += a.bias[i];
}

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

KERNEL(activate, ROW_THREADS, ActivateArguments) {
    const unsigned i = blockIdx.x * ROW_THREADS + threadIdx.x;
    if (i >= a.count) return;
    const unsigned row = i / a.width, column = i % a.width;
    a.out[(unsigned long long)row * a.stride + column] = narrow(activated(a.sums[i] + a.bias[column], a.activation));
}
