// Attention over the KV pool, for decode and prompts alike: up to 16 rows of a sequence, one head, a block.
//
// Warp w takes positions 32w … 32w + 31, then those 8 · 32 further, …, keeps a softmax of its own over them, and the eight are merged
// in order. A row's sums depend on its position and history only, so it has the same bits alone, in a batch, and in a tile of a
// prompt. Nothing is staged: a lane loads the keys and values that its part of the products needs, sixteen bytes at a time.

#define ATTENTION_THREADS 256
#define ATTENTION_WARPS (ATTENTION_THREADS / 32)
#define TILE_ROWS 16
// Slices of the widest head.
#define MOST_SLICES 4

// The weights of 32 positions, from the scores of rows g and g + 8: their softmax so far goes on, and `fade` is what becomes of it.
DEVICE void soften(float scores[4][4], float *largest, float *sum, float *fade) {
    UNROLL for (int half = 0; half < 2; half++) {
        float now = largest[half];
        UNROLL for (int j = 0; j < 4; j++) now = fmaxf(now, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
        now = fmaxf(now, SHUFFLE_XOR(now, 1));
        now = fmaxf(now, SHUFFLE_XOR(now, 2));
        // A row that sees nothing yet keeps its zeros, and −∞ − −∞ would not be a number.
        const float base = now > MINUS_INFINITY ? now : 0.0f;
        fade[half] = expf(largest[half] - base);
        float weights = 0.0f;
        UNROLL for (int j = 0; j < 4; j++) {
            UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[j][i] = expf(scores[j][i] - base);
                weights += scores[j][i];
            }
        }
        weights += SHUFFLE_XOR(weights, 1);
        weights += SHUFFLE_XOR(weights, 2);
        sum[half] = sum[half] * fade[half] + weights;
        largest[half] = now;
    }
}

// Heads of up to `slices` · 32, a constant to the compiler.
DEVICE void attend(const AttendArguments *a, const int slices) {
    // [warps][tile_rows][2 + D]: largest score, sum, mixed values.
    DYNAMIC_SHARED(partial);
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, head = blockIdx.y;
    const unsigned d_count = a->from.head_dim, stride = a->from.head_stride, heads = a->from.heads;
    const unsigned kv_heads = a->from.kv_heads, kv = (head + a->skipped) / a->group;
    const Placement *at = &a->from.at;
    const unsigned first = a->tiles ? a->tiles[2 * blockIdx.x] : blockIdx.x;
    const unsigned rows = a->tiles ? a->tiles[2 * blockIdx.x + 1] : 1;
    const unsigned *table = at->tables + (unsigned long long)at->sequences[first] * a->from.table_blocks;
    const unsigned first_position = at->positions[first], last_position = first_position + rows - 1;

    Eight low[MOST_SLICES], high[MOST_SLICES];
    UNROLL for (int s = 0; s < slices; s++) {
        const unsigned d = SLICE * s + 8 * t;
        const element *query = a->from.queries + ((unsigned long long)(first + g) * heads + head) * stride + d;
        low[s] = load_eight(query, g < rows && d < stride);
        high[s] = load_eight(query + 8 * (unsigned long long)heads * stride, g + 8 < rows && d < stride);
    }
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f}, fade[2];
    // Of eight times `slices` / 2 tiles: tile i has outputs i, 8 + i, 16 + i, … of each 64.
    float mixed[MOST_SLICES / 2][8][4];
    UNROLL for (int s = 0; s < slices / 2; s++)
        UNROLL for (int i = 0; i < 8; i++)
            UNROLL for (int k = 0; k < 4; k++) mixed[s][i][k] = 0.0f;

    // A warp's positions do not depend on where the first is that is seen.
    const unsigned seen = (first_position > a->window ? first_position - a->window : 0) / SLICE;
    const unsigned begin = seen + (warp - seen) % ATTENTION_WARPS;
    for (unsigned base = SLICE * begin; base <= last_position; base += SLICE * ATTENTION_WARPS) {
        const element *keys[2];
        UNROLL for (int i = 0; i < 2; i++) {
            const unsigned block = base + BLOCK * i <= last_position ? table[base / BLOCK + i] : 0;
            keys[i] = a->from.cache + ((unsigned long long)block * kv_heads + kv) * 2 * BLOCK * stride;
        }
        float scores[4][4];
        UNROLL for (int j = 0; j < 4; j++) {
            const unsigned slot = 8 * j + g;
            UNROLL for (int k = 0; k < 4; k++) scores[j][k] = 0.0f;
            UNROLL for (int s = 0; s < slices; s++) {
                const unsigned d = SLICE * s + 8 * t;
                const int present = base + slot <= last_position && d < stride;
                const Eight key = load_eight(keys[j / 2] + slot % BLOCK * stride + d, present);
                multiply(scores[j], &low[s], &high[s], &key);
            }
            UNROLL for (int k = 0; k < 4; k++) {
                const unsigned row = g + k / 2 * 8, position = base + 8 * j + 2 * t + k % 2;
                // What comes after the row wraps to more than the widest window.
                const int is_seen = row < rows && first_position + row - position <= a->window;
                scores[j][k] = is_seen ? scores[j][k] * a->scale : MINUS_INFINITY;
            }
        }
        soften(scores, largest, sum, fade);
        Eight low_weights, high_weights;
        UNROLL for (int j = 0; j < 4; j++) {
            set_pair(&low_weights, j, scores[j][0], scores[j][1]);
            set_pair(&high_weights, j, scores[j][2], scores[j][3]);
        }
        UNROLL for (int s = 0; s < slices / 2; s++) {
            // The positions whose weights this lane has. What lies behind the last belongs to nobody, and may be anything.
            Eight values[8];
            UNROLL for (int k = 0; k < 8; k++) {
                const unsigned slot = 8 * (k / 2) + 2 * t + k % 2, d = 64 * s + 8 * g;
                const int present = base + slot <= last_position && d < stride;
                values[k] = load_eight(keys[k / 4] + (BLOCK + slot % BLOCK) * stride + d, present);
            }
            UNROLL for (int i = 0; i < 8; i++) {
                UNROLL for (int k = 0; k < 4; k++) mixed[s][i][k] *= fade[k / 2];
                const Eight column = column_of(values, i);
                multiply(mixed[s][i], &low_weights, &high_weights, &column);
            }
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        const unsigned row = g + 8 * half;
        if (row >= rows) continue;
        float *to = partial + (warp * a->tile_rows + row) * (2 + d_count);
        if (t == 0) {
            to[0] = largest[half];
            to[1] = sum[half];
        }
        UNROLL for (int s = 0; s < slices / 2; s++) {
            UNROLL for (int i = 0; i < 8; i++) {
                UNROLL for (int k = 0; k < 2; k++) {
                    const unsigned d = 64 * s + 8 * (2 * t + k) + i;
                    if (d < d_count) to[2 + d] = mixed[s][i][2 * half + k];
                }
            }
        }
    }
    BARRIER();
    for (unsigned i = threadIdx.x; i < rows * d_count; i += ATTENTION_THREADS) {
        const unsigned row = i / d_count, d = i % d_count, step = a->tile_rows * (2 + d_count);
        const float *from = partial + row * (2 + d_count);
        float most = MINUS_INFINITY, total = 0.0f, value = 0.0f;
        for (unsigned w = 0; w < ATTENTION_WARPS; w++) most = fmaxf(most, from[w * step]);
        for (unsigned w = 0; w < ATTENTION_WARPS; w++) {
            const float share = expf(from[w * step] - most);
            total += share * from[w * step + 1];
            value += share * from[w * step + 2 + d];
        }
        a->out[(unsigned long long)(first + row) * a->out_stride + head * d_count + d] = narrow(value / total);
    }
}

KERNEL(attend_64, ATTENTION_THREADS, AttendArguments) {
    IN_TURN();
    attend(&a, 2);
}
KERNEL(attend_128, ATTENTION_THREADS, AttendArguments) {
    IN_TURN();
    attend(&a, 4);
}
