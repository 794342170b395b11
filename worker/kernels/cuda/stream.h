// What some families do to the residual stream beside adding to it.

DEVICE float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// What is taken from a row's values, and what they are multiplied by then.
typedef struct {
    float mean, scale;
} Scaling;

// By a warp.
DEVICE Scaling scaling_of(const Norm *a, const float *row) {
    const unsigned lane = threadIdx.x % 32, width = a->width;
    float sum = 0.0f, squares = 0.0f;
    for (unsigned i = lane; a->is_centred && i < width; i += 32) sum += row[i];
    Scaling scaling = {warp_sum(sum) / width, 0.0f};
    for (unsigned i = lane; i < width; i += 32) squares += (row[i] - scaling.mean) * (row[i] - scaling.mean);
    scaling.scale = 1.0f / sqrtf(warp_sum(squares) / width + a->epsilon);
    return scaling;
}

// Normed embeddings, a warp a row: to each is added that of the token before, as far as a gate says. Where that token is in no row, its
// embedding stands behind those of all rows, one for each sequence.
KERNEL(begin, ROW_THREADS, BeginArguments) {
    IN_TURN();
    const unsigned row = ROW_WARPS * blockIdx.x + threadIdx.x / 32, lane = threadIdx.x % 32, width = a.norm.width;
    if (row >= a.count) return;
    const unsigned sequence = a.sequences[row], is_first = !row || a.sequences[row - 1] != sequence;
    const float *own = a.norm.x + (unsigned long long)row * width;
    const float *before = a.norm.x + (unsigned long long)(is_first ? a.count + sequence : row - 1) * width;
    float *x = a.x + (unsigned long long)row * width;
    const Scaling of_own = scaling_of(&a.norm, own);
    Scaling of_before = {0.0f, 0.0f};
    // The first of a text has none before it.
    const int is_added = a.gate && a.positions[row] > 0;
    if (is_added) {
        of_before = scaling_of(&a.norm, before);
        float score = 0.0f;
        for (unsigned i = lane; i < a.channels; i += 32) score += a.gate[i] * ((own[i] - of_own.mean) * of_own.scale);
        of_before.scale *= a.scale * logistic(warp_sum(score));
    }
    for (unsigned i = lane; i < width; i += 32) {
        const float value = (own[i] - of_own.mean) * of_own.scale;
        x[i] = is_added ? value + (before[i] - of_before.mean) * of_before.scale : value;
    }
}

// A block a row.
KERNEL(mix, ROW_THREADS, MixArguments) {
    IN_TURN();
    const unsigned long long first = (unsigned long long)blockIdx.x * a.width;
    for (unsigned i = threadIdx.x; i < a.width; i += ROW_THREADS) {
        const float value = a.x[first + i];
        // First, as it may be what is added.
        if (a.kept) a.kept[first + i] = value;
        a.x[first + i] = a.factor * value + (a.other ? a.other_factor * a.other[first + i] : 0.0f);
    }
}
