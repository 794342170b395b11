// What is done to rows one by one: embedding, LayerNorm with the residual connection before it, activation. One block a row.

#define ROW_THREADS 256

KERNEL(embed, ROW_THREADS, EmbedArguments) {
    const unsigned row = blockIdx.x, token = a.tokens[row] - a.first_token;
    const element *from = a.embedding + (unsigned long long)token * a.width;
    const float *position = a.position_embedding + (unsigned long long)a.positions[row] * a.width;
    float *x = a.x + (unsigned long long)row * a.width;
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) {
        // A token of another rank is above every local one, also where the difference wraps.
        const float value = token < a.tokens_local ? widen(from[i]) : 0.0f;
        x[i] = a.position_embedding ? value + position[i] : value;
    }
}

// x += delta + bias; out = (x − mean) / sqrt(variance + epsilon) · gain + shift, in two passes over f32.
KERNEL(residual_norm, ROW_THREADS, NormArguments) {
    SHARED float scratch[32];
    const unsigned long long row = a.rows ? a.rows[blockIdx.x] : blockIdx.x;
    float *x = a.x + row * a.width;
    const float *delta = a.delta + row * a.width;
    element *out = a.out + (unsigned long long)blockIdx.x * a.width;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) sum += a.delta ? x[i] + (delta[i] + a.bias[i]) : x[i];
    const float mean = block_sum(sum, scratch) / a.width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) {
        const float difference = (a.delta ? x[i] + (delta[i] + a.bias[i]) : x[i]) - mean;
        squares += difference * difference;
    }
    const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / a.width + a.epsilon);
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) {
        const float value = a.delta ? x[i] + (delta[i] + a.bias[i]) : x[i];
        if (!a.rows) x[i] = value;
        out[i] = narrow((value - mean) * scale * a.gain[i] + a.shift[i]);
    }
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
    if (i < a.count) a.out[i] = narrow(activated(a.sums[i] + a.bias[i % a.width], a.activation));
}
