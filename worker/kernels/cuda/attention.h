// The KV pool and attention over it, for decode and prompts alike.
//
//   one layer's pool:  block 0 | block 1 | …         a block: head 0 | head 1 | …   (this rank's heads)
//   one head of a block:  K as [D][16 positions], then V as [16 positions][D]
//
// K lies so that the 16 lanes of half a warp read 16 scores' worth side by side; V so that all lanes read one position's.
// A row's sums depend on its position and history only: warp w takes blocks w, w + 8, …, of which it keeps a softmax of its own, and
// the eight are merged in order. So a row has the same bits alone, in a batch, and in a tile of a prompt.

#define BLOCK 16
#define ATTENTION_THREADS 256
#define ATTENTION_WARPS (ATTENTION_THREADS / 32)
#define MAX_TILE_ROWS 4
#define MAX_HEAD_DIM 256

KERNEL(write_kv, ROW_THREADS, WriteKvArguments) {
    const unsigned row = blockIdx.x, position = a.at.positions[row], width = a.heads * a.head_dim;
    const unsigned block = a.at.tables[(unsigned long long)a.at.sequences[row] * a.table_blocks + position / BLOCK];
    float *qkv = a.qkv + (unsigned long long)row * 3 * width;
    const unsigned slot = position % BLOCK;
    for (unsigned i = threadIdx.x; i < width; i += ROW_THREADS) {
        const unsigned head = i / a.head_dim, d = i % a.head_dim;
        element *k = a.cache + ((unsigned long long)block * a.heads + head) * 2 * BLOCK * a.head_dim;
        element *v = k + BLOCK * a.head_dim;
        qkv[i] += a.bias[i];
        k[d * BLOCK + slot] = narrow(qkv[width + i] + a.bias[width + i]);
        v[slot * a.head_dim + d] = narrow(qkv[2 * width + i] + a.bias[2 * width + i]);
    }
}

// One head of up to `tile_rows` rows of a sequence; a lane sums up `per_lane` outputs of each. Both are constants to the compiler.
DEVICE void attend(const AttendArguments *a, const int tile_rows, const int per_lane) {
    DYNAMIC_SHARED(shared);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y;
    const unsigned d_count = a->head_dim, width = a->heads * d_count;
    const unsigned first = a->tiles ? a->tiles[2 * blockIdx.x] : blockIdx.x;
    const int rows = a->tiles ? (int)a->tiles[2 * blockIdx.x + 1] : 1;
    const unsigned *table = a->at.tables + (unsigned long long)a->at.sequences[first] * a->table_blocks;
    const unsigned first_position = a->at.positions[first], last_position = first_position + rows - 1;

    float *queries = shared;                          // [tile_rows][D]
    float *partial = shared + tile_rows * d_count;    // [warps][tile_rows][2 + D]: largest score, sum, mixed values
    for (unsigned i = threadIdx.x; i < tile_rows * d_count; i += ATTENTION_THREADS) {
        const unsigned row = i / d_count;
        const float *q = a->qkv + (unsigned long long)(first + row) * 3 * width + head * d_count;
        queries[i] = row < (unsigned)rows ? q[i % d_count] * a->scale : 0.0f;
    }
    BARRIER();

    float largest[MAX_TILE_ROWS], sum[MAX_TILE_ROWS], mixed[MAX_TILE_ROWS][MAX_HEAD_DIM / 32];
    UNROLL for (int r = 0; r < tile_rows; r++) {
        largest[r] = MINUS_INFINITY;
        sum[r] = 0.0f;
        UNROLL for (int j = 0; j < per_lane; j++) mixed[r][j] = 0.0f;
    }
    for (unsigned block = warp; block * BLOCK <= last_position; block += ATTENTION_WARPS) {
        const element *k = a->cache + ((unsigned long long)table[block] * a->heads + head) * 2 * BLOCK * d_count;
        const element *v = k + BLOCK * d_count;
        const unsigned slot = lane % BLOCK, position = block * BLOCK + slot;
        float weight[MAX_TILE_ROWS];
        UNROLL for (int r = 0; r < tile_rows; r++) weight[r] = 0.0f;
        for (unsigned d = lane / BLOCK; d < d_count; d += 32 / BLOCK) {
            const float key = widen(k[d * BLOCK + slot]);
            UNROLL for (int r = 0; r < tile_rows; r++) weight[r] += queries[r * d_count + d] * key;
        }
        UNROLL for (int r = 0; r < tile_rows; r++) {
            const float score = weight[r] + SHUFFLE_XOR(weight[r], 16);
            const int visible = r < rows && position <= first_position + r;
            float block_largest = visible ? score : MINUS_INFINITY;
            for (int mask = BLOCK / 2; mask; mask /= 2)
                block_largest = fmaxf(block_largest, SHUFFLE_XOR(block_largest, mask));
            const float now = fmaxf(largest[r], block_largest);
            // A row that sees nothing yet keeps its zeros.
            const float fade = now == MINUS_INFINITY ? 1.0f : expf(largest[r] - now);
            weight[r] = visible ? expf(score - now) : 0.0f;
            float block_sum = weight[r];
            for (int mask = BLOCK / 2; mask; mask /= 2) block_sum += SHUFFLE_XOR(block_sum, mask);
            sum[r] = sum[r] * fade + block_sum;
            largest[r] = now;
            UNROLL for (int j = 0; j < per_lane; j++) mixed[r][j] *= fade;
        }
        // What lies behind the last position belongs to nobody, and may be anything.
        const unsigned filled = last_position - block * BLOCK + 1 < BLOCK ? last_position - block * BLOCK + 1 : BLOCK;
        for (unsigned p = 0; p < filled; p++) {
            float weights[MAX_TILE_ROWS];
            UNROLL for (int r = 0; r < tile_rows; r++) weights[r] = SHUFFLE(weight[r], p);
            UNROLL for (int j = 0; j < per_lane; j++) {
                const unsigned d = lane + 32 * j;
                const float value = d < d_count ? widen(v[p * d_count + d]) : 0.0f;
                UNROLL for (int r = 0; r < tile_rows; r++) mixed[r][j] += weights[r] * value;
            }
        }
    }
    UNROLL for (int r = 0; r < tile_rows; r++) {
        float *to = partial + (warp * tile_rows + r) * (2 + d_count);
        if (lane == 0) {
            to[0] = largest[r];
            to[1] = sum[r];
        }
        UNROLL for (int j = 0; j < per_lane; j++) {
            if (lane + 32 * j < d_count) to[2 + lane + 32 * j] = mixed[r][j];
        }
    }
    BARRIER();
    for (unsigned i = threadIdx.x; i < rows * d_count; i += ATTENTION_THREADS) {
        const unsigned row = i / d_count, d = i % d_count, step = tile_rows * (2 + d_count);
        const float *from = partial + row * (2 + d_count);
        float most = MINUS_INFINITY, total = 0.0f, value = 0.0f;
        for (unsigned w = 0; w < ATTENTION_WARPS; w++) most = fmaxf(most, from[w * step]);
        for (unsigned w = 0; w < ATTENTION_WARPS; w++) {
            const float share = expf(from[w * step] - most);
            total += share * from[w * step + 1];
            value += share * from[w * step + 2 + d];
        }
        a->out[(unsigned long long)(first + row) * width + head * d_count + d] = narrow(value / total);
    }
}

KERNEL(attend_rows, ATTENTION_THREADS, AttendArguments) { attend(&a, 1, 2); }
KERNEL(attend_tiles, ATTENTION_THREADS, AttendArguments) { attend(&a, MAX_TILE_ROWS, 2); }
// Of heads wider than 64.
KERNEL(attend_wide_rows, ATTENTION_THREADS, AttendArguments) { attend(&a, 1, MAX_HEAD_DIM / 32); }
KERNEL(attend_wide_tiles, ATTENTION_THREADS, AttendArguments) { attend(&a, MAX_TILE_ROWS, MAX_HEAD_DIM / 32); }
