// What is done to rows one by one: embedding, LayerNorm, activation.

#define ROW_THREADS 256
#define ROW_WARPS (ROW_THREADS / 32)

KERNEL(embed, ROW_THREADS, EmbedArguments) {
    IN_TURN();
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

// Writes the norm of a row, by a warp: (x − mean) / sqrt(variance + epsilon) · gain + shift, in two passes over f32; of an RMSNorm the
// mean is taken for 0. What lies behind it up to its stride becomes zero.
DEVICE void normalise(const Norm *a, unsigned row, element *out, unsigned stride) {
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
    ROLLED for (unsigned begin = lane; begin < width; begin += 32 * HELD) {
        if (!is_held) load_held(from, begin, width, x);
        UNROLL for (int j = 0; j < HELD; j++) {
            const unsigned i = begin + 32 * j;
            if (i >= width) continue;
            const float gain = a->gain ? a->gain[i] : 1.0f, shift = a->shift ? a->shift[i] : 0.0f;
            out[i] = narrow((x[j] - mean) * scale * gain + shift);
        }
    }
    for (unsigned i = width + lane; i < stride; i += 32) out[i] = narrow(0.0f);
}

// Of rows for products of many; of few, `project` does it by itself. A block takes as many as it has warps.
KERNEL(layer_norm, ROW_THREADS, NormArguments) {
    IN_TURN();
    const unsigned row = ROW_WARPS * blockIdx.x + threadIdx.x / 32;
    if (row < a.count) normalise(&a.norm, row, a.out + (unsigned long long)row * a.stride, a.stride);
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
