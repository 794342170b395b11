// Where queries, keys and values go.
//
//   one layer's pool:  block 0 | block 1 | …         a block: head 0 | head 1 | …   (this rank's heads)
//   one head of a block:  K as [16 positions][S], then V as [16 positions][S]       S: D rounded up to what is loaded at once
//
// What is behind D was zero when the pool was made, and stays so.

#define BLOCK 16

// Stores element d of a head of a row: of queries, then of keys, then of values.
DEVICE void store_head(const QkvPlaces *to, unsigned row, unsigned head, unsigned d, float value) {
    if (head < to->heads) {
        to->queries[((unsigned long long)row * to->heads + head) * to->head_stride + d] = narrow(value);
        return;
    }
    const unsigned kv = (head - to->heads) % to->kv_heads, is_value = head >= to->heads + to->kv_heads;
    const unsigned position = to->at.positions[row];
    const unsigned block = to->at.tables[(unsigned long long)to->at.sequences[row] * to->table_blocks + position / BLOCK];
    element *keys = to->cache + ((unsigned long long)block * to->kv_heads + kv) * 2 * BLOCK * to->head_stride;
    keys[(is_value * BLOCK + position % BLOCK) * to->head_stride + d] = narrow(value);
}

// Where positions are rotations: once a step, one thread for each angle.
KERNEL(angles, ROW_THREADS, TurnsArguments) {
    IN_TURN();
    const unsigned i = ROW_THREADS * blockIdx.x + threadIdx.x;
    if (i >= a.count) return;
    const unsigned row = i / a.half, m = i % a.half;
    const float angle = (float)a.positions[row] * a.frequencies[m];
    float cosine = cosf(angle) * a.factor, sine = sinf(angle) * (a.is_backwards ? -a.factor : a.factor);
    if (a.is_rounded) {
        cosine = rounded_to_bf16(cosine);
        sine = rounded_to_bf16(sine);
    }
    a.turns[(2 * row) * a.half + m] = cosine;
    a.turns[(2 * row + 1) * a.half + m] = sine;
}

#define MOST_HEAD_DIM 128

// How far a row of a table is added to the values of a head, by a warp.
DEVICE float gate_of(const AddedValues *a, unsigned row, unsigned kv, unsigned kv_heads) {
    const float *x = a->norm.x + (unsigned long long)row * a->norm.width;
    const Scaling scaling = scaling_of(&a->norm, x);
    float score = 0.0f;
    for (unsigned i = threadIdx.x % 32; i < a->channels; i += 32) {
        const float gain = a->norm.gain ? a->norm.gain[i] : 1.0f, shift = a->norm.shift ? a->norm.shift[i] : 0.0f;
        score += ((x[i] - scaling.mean) * scaling.scale * gain + shift) * a->gates[i * kv_heads + kv];
    }
    return a->factor * logistic(warp_sum(score));
}

// Of sums of the QKV product, a warp a head: norm, rotation, and where they go. A head u is (a, b), halves, and becomes
// (a · cos − b · sin, b · cos + a · sin).
KERNEL(turn, ROW_THREADS, TurnArguments) {
    IN_TURN();
    const unsigned row = blockIdx.x, head = ROW_WARPS * blockIdx.y + threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned all = a.to.heads + 2 * a.to.kv_heads, width = a.to.head_dim, half = width / 2;
    if (head >= all) return;
    const int is_value = head >= a.to.heads + a.to.kv_heads;
    const float *sums = a.sums + ((unsigned long long)row * all + head) * width, *bias = a.bias ? a.bias + head * width : 0;
    const float *gain = is_value ? 0 : head < a.to.heads ? a.query_gain : a.key_gain;
    const float *turns = a.turns + (unsigned long long)row * width;
    // A value's own head, and where a row for it begins.
    const unsigned kv = head - a.to.heads - a.to.kv_heads;
    const int is_added = is_value && a.added.table.rows;
    const unsigned token = is_added ? a.added.tokens[row] : 0, column = kv * ((width + UNIT_ROUND - 1) / UNIT_ROUND * UNIT_ROUND);
    const weight *table = a.added.table.rows + (unsigned long long)token * a.added.stride;
    const float amount = is_added ? gate_of(&a.added, row, kv, a.to.kv_heads) : 0.0f;
    float x[MOST_HEAD_DIM / 32], other[MOST_HEAD_DIM / 32], squares = 0.0f;
    UNROLL for (int j = 0; j < MOST_HEAD_DIM / 32; j++) {
        const unsigned d = lane + 32 * j, partner = d < half ? d + half : d - half;
        const int is_there = d < width;
        x[j] = is_there ? sums[d] + (bias ? bias[d] : 0.0f) : 0.0f;
        if (is_added && is_there) x[j] += amount * weight_of(&a.added.table, table, column + d, token, a.added.rows);
        other[j] = is_there ? sums[partner] + (bias ? bias[partner] : 0.0f) : 0.0f;
        squares += x[j] * x[j];
    }
    squares = warp_sum(squares);
    const float scale = gain ? 1.0f / sqrtf(squares / width + a.epsilon) : 1.0f;
    squares = 0.0f;
    UNROLL for (int j = 0; j < MOST_HEAD_DIM / 32; j++) {
        const unsigned d = lane + 32 * j;
        if (is_value || d >= width) continue;
        const unsigned m = d < half ? d : d - half;
        const float own = gain ? x[j] * scale * gain[d] : x[j];
        const float theirs = gain ? other[j] * scale * gain[d < half ? d + half : m] : other[j];
        const float cosine = turns[m], sine = turns[half + m];
        x[j] = d < half ? own * cosine - theirs * sine : own * cosine + theirs * sine;
        squares += x[j] * x[j];
    }
    squares = warp_sum(squares);
    const float last = !is_value && a.factor != 0.0f ? a.factor / sqrtf(squares / width + a.epsilon) : 1.0f;
    UNROLL for (int j = 0; j < MOST_HEAD_DIM / 32; j++) {
        const unsigned d = lane + 32 * j;
        if (d < width) store_head(&a.to, row, head, d, x[j] * last);
    }
}
