// Attention over the KV pool, for decode and prompts alike: up to 16 rows of a sequence, one head, a block.
//
//   history    part 0 | part 1 | …                      at most MOST_PARTS, each as many times 256 positions as it takes
//   a part     warp 0: positions 0 … 31 | warp 1: 32 … 63 | … | warp 7, then those 256 further
//
// Each warp keeps a softmax of its own, the eight are merged in order, and so are the parts. What a part is follows from a row's sixteen
// positions alone, so a row has the same bits alone, in a batch, and in a tile of a prompt, whether one block goes through all
// parts or several share them. Nothing is staged: a lane loads the keys and values that its part of the products needs, sixteen bytes at a time.

#define ATTENTION_THREADS 256
#define ATTENTION_WARPS (ATTENTION_THREADS / 32)
#define TILE_ROWS 16
// Slices of the widest head.
#define MOST_SLICES 4
// Positions that the warps of a block take at a time.
#define ROUND (SLICE * ATTENTION_WARPS)
#define MOST_PARTS 16

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

// The parts of what the rows from some position on see, which are of one sixteen.
typedef struct {
    unsigned first, of_part, count;  // position, positions, parts
} Parts;

DEVICE Parts parts_of(const AttendArguments *a, unsigned position) {
    const unsigned sixteen = position / TILE_ROWS * TILE_ROWS;
    const unsigned round = (sixteen > a->window ? sixteen - a->window : 0) / ROUND, rounds = sixteen / ROUND + 1 - round;
    const unsigned of_part = (rounds + MOST_PARTS - 1) / MOST_PARTS;
    const Parts parts = {round * ROUND, of_part * ROUND, (rounds + of_part - 1) / of_part};
    return parts;
}

// The softmax so far: largest score, sum of weights, and a sum of values by them, each relative to the largest.
typedef struct {
    float largest, sum, value;
} Mixed;

// It goes on with what comes behind it.
DEVICE Mixed merged(Mixed so_far, Mixed next) {
    const float largest = fmaxf(so_far.largest, next.largest);
    // Of nothing seen −∞ − −∞ would not be a number.
    const float base = largest > MINUS_INFINITY ? largest : 0.0f;
    const float left = expf(so_far.largest - base), right = expf(next.largest - base);
    const Mixed both = {largest, left * so_far.sum + right * next.sum, left * so_far.value + right * next.value};
    return both;
}

// What the warps of a block have of a value of a row: `step` floats from one to the next.
DEVICE Mixed of_warps(const float *from, unsigned d, unsigned step) {
    Mixed all = {MINUS_INFINITY, 0.0f, 0.0f};
    for (unsigned w = 0; w < ATTENTION_WARPS; w++) all.largest = fmaxf(all.largest, from[w * step]);
    const float base = all.largest > MINUS_INFINITY ? all.largest : 0.0f;
    for (unsigned w = 0; w < ATTENTION_WARPS; w++) {
        const float share = expf(from[w * step] - base);
        all.sum += share * from[w * step + 1];
        all.value += share * from[w * step + 2 + d];
    }
    return all;
}

// What a block attends with: some rows of a sequence that follow one another, of one head.
typedef struct {
    const unsigned *table;
    unsigned head, kv;
    unsigned first, rows;               // of the step
    unsigned position, last_position;   // of the first and of the last row
} Place;

// Where the keys of a block begin, which its values follow.
DEVICE const element *keys_of(const AttendArguments *a, const Place *at, unsigned block) {
    return a->from.cache + ((unsigned long long)at->table[block] * a->from.kv_heads + at->kv) * 2 * BLOCK * a->from.head_stride;
}

// Brings the keys and values of a warp's 32 positions near, each lane those of one.
DEVICE void bring(const AttendArguments *a, const Place *at, unsigned base) {
    const unsigned position = base + threadIdx.x % 32, stride = a->from.head_stride;
    if (position > at->last_position) return;
    const element *key = keys_of(a, at, position / BLOCK) + position % BLOCK * stride;
    ROLLED for (unsigned d = 0; d < stride; d += 128 / sizeof(element)) {
        PREFETCH(key + d);
        PREFETCH(key + BLOCK * stride + d);
    }
}

// Eight elements of a query, from `d` on.
DEVICE Eight query_of(const AttendArguments *a, const Place *at, unsigned row, unsigned d) {
    const unsigned stride = a->from.head_stride;
    const unsigned long long head = (unsigned long long)(at->first + row) * a->from.heads + at->head;
    return load_eight(a->from.queries + head * stride + d, row < at->rows && d < stride);
}

// Attends to positions from `begin` to `end`, and writes the warp's softmax of each row among those of the others, [warps][tile_rows][2 + D]:
// largest score, sum, mixed values. For heads of up to `slices` · 32, a constant to the compiler.
DEVICE void attend_to(const AttendArguments *a, const Place *at, unsigned begin, unsigned end, const int slices, float *partial) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const unsigned stride = a->from.head_stride, d_count = a->from.head_dim;
    // Of f32 there are no registers for them.
    const int are_held = sizeof(element) < 4;
    Eight low[MOST_SLICES], high[MOST_SLICES];
    UNROLL for (int s = 0; are_held && s < slices; s++) {
        low[s] = query_of(a, at, g, SLICE * s + 8 * t);
        high[s] = query_of(a, at, g + 8, SLICE * s + 8 * t);
    }
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, sum[2] = {0.0f, 0.0f}, fade[2];
    // Of eight times `slices` / 2 tiles: tile i has outputs i, 8 + i, 16 + i, … of each 64.
    float mixed[MOST_SLICES / 2][8][4];
    UNROLL for (int s = 0; s < slices / 2; s++)
        UNROLL for (int i = 0; i < 8; i++)
            UNROLL for (int k = 0; k < 4; k++) mixed[s][i][k] = 0.0f;

    const unsigned first_seen = at->position > a->window ? at->position - a->window : 0;
    for (unsigned base = begin + SLICE * warp; base < end && base <= at->last_position; base += ROUND) {
        if (base + SLICE <= first_seen) continue;
        bring(a, at, base + ROUND);
        const element *keys[2];
        UNROLL for (int i = 0; i < 2; i++)
            keys[i] = keys_of(a, at, base + BLOCK * i <= at->last_position ? base / BLOCK + i : base / BLOCK);
        float scores[4][4];
        UNROLL for (int j = 0; j < 4; j++) {
            const unsigned slot = 8 * j + g;
            UNROLL for (int k = 0; k < 4; k++) scores[j][k] = 0.0f;
            UNROLL for (int s = 0; s < slices; s++) {
                const unsigned d = SLICE * s + 8 * t;
                const int present = base + slot <= at->last_position && d < stride;
                const Eight key = load_eight(keys[j / 2] + slot % BLOCK * stride + d, present);
                if (!are_held) {
                    low[s] = query_of(a, at, g, d);
                    high[s] = query_of(a, at, g + 8, d);
                }
                multiply(scores[j], &low[s], &high[s], &key);
            }
            UNROLL for (int k = 0; k < 4; k++) {
                const unsigned row = g + k / 2 * 8, position = base + 8 * j + 2 * t + k % 2;
                // What comes after the row wraps to more than the widest window.
                const int is_seen = row < at->rows && at->position + row - position <= a->window;
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
                const int present = base + slot <= at->last_position && d < stride;
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
        if (row >= at->rows) continue;
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
}

DEVICE void put_mixed(const AttendArguments *a, unsigned row, unsigned head, unsigned d, Mixed all) {
    a->out[(unsigned long long)row * a->out_stride + head * a->from.head_dim + d] = carry(all.value / all.sum);
}

// Merges a part of some rows with those before, whose sums of values wait in `parts`, [T, H_local, D].
DEVICE void merge_next(const AttendArguments *a, const Place *at, unsigned part, unsigned count, const float *partial) {
    // Largest score and sum of each row so far, and as of the part before.
    SHARED float so_far[2][TILE_ROWS][2];
    const unsigned d_count = a->from.head_dim;
    for (unsigned i = threadIdx.x; i < at->rows * d_count; i += ATTENTION_THREADS) {
        const unsigned row = i / d_count, d = i % d_count;
        Mixed all = of_warps(partial + row * (2 + d_count), d, a->tile_rows * (2 + d_count));
        float *value = a->parts + ((unsigned long long)(at->first + row) * a->from.heads + at->head) * d_count + d;
        if (part) {
            const Mixed before = {so_far[part % 2][row][0], so_far[part % 2][row][1], *value};
            all = merged(before, all);
        }
        if (part + 1 == count) {
            put_mixed(a, at->first + row, at->head, d, all);
            continue;
        }
        *value = all.value;
        if (d == 0) {
            so_far[1 - part % 2][row][0] = all.largest;
            so_far[1 - part % 2][row][1] = all.sum;
        }
    }
}

DEVICE float *kept_of(const AttendArguments *a, const Place *at) {
    return a->parts + (unsigned long long)(at->first * a->from.heads + at->head) * MOST_PARTS * (2 + a->from.head_dim);
}

// A part of one row that several blocks share, which waits in `parts`, [T, H_local, MOST_PARTS, 2 + D].
DEVICE void keep_part(const AttendArguments *a, float *to, const float *partial) {
    const unsigned d_count = a->from.head_dim, d = threadIdx.x;
    if (d >= d_count) return;
    const Mixed all = of_warps(partial, d, a->tile_rows * (2 + d_count));
    if (d == 0) {
        to[0] = all.largest;
        to[1] = all.sum;
    }
    to[2 + d] = all.value;
}

// The block that comes last merges all parts of the row in order.
DEVICE void merge_kept(const AttendArguments *a, const Place *at, unsigned blocks, unsigned count, const float *parts) {
    SHARED unsigned arrived;
    const unsigned of_row = at->first * a->from.heads + at->head, d_count = a->from.head_dim, d = threadIdx.x;
    FENCE();
    BARRIER();
    if (threadIdx.x == 0) arrived = 1 + ATOMIC_ADD(&a->arrived[of_row], 1u);
    BARRIER();
    if (arrived < blocks) return;
    // For the next kernel.
    if (threadIdx.x == 0) a->arrived[of_row] = 0;
    FENCE();
    if (d >= d_count) return;
    Mixed all = {0.0f, 0.0f, 0.0f};
    for (unsigned part = 0; part < count; part++, parts += 2 + d_count) {
        const Mixed next = {LOAD_FRESH(parts), LOAD_FRESH(parts + 1), LOAD_FRESH(parts + 2 + d)};
        all = part ? merged(all, next) : next;
    }
    put_mixed(a, at->first, at->head, d, all);
}

DEVICE void attend(const AttendArguments *a, const int slices) {
    DYNAMIC_SHARED(partial);
    BEGIN_NEXT();
    const Placement *rows = &a->from.at;
    const unsigned first = a->tiles ? a->tiles[2 * blockIdx.x] : blockIdx.x, head = blockIdx.y / a->sharing;
    const unsigned count = a->tiles ? a->tiles[2 * blockIdx.x + 1] : 1, position = rows->positions[first];
    const unsigned *table = rows->tables + (unsigned long long)rows->sequences[first] * a->from.table_blocks;
    const Place at = {table, head, (head + a->skipped) / a->group, first, count, position, position + count - 1};
    const Parts parts = parts_of(a, position);
    const unsigned place = blockIdx.y % a->sharing, blocks = parts.count < a->sharing ? parts.count : a->sharing;
    // All but the rows' own were there before this step.
    if (place < blocks) bring(a, &at, parts.first + place * parts.of_part + SLICE * (threadIdx.x / 32));
    AFTER_PREVIOUS();
    if (place >= blocks) return;
    ROLLED for (unsigned part = place; part < parts.count; part += blocks) {
        const unsigned begin = parts.first + part * parts.of_part;
        attend_to(a, &at, begin, begin + parts.of_part, slices, partial);
        BARRIER();
        if (a->sharing > 1)
            keep_part(a, kept_of(a, &at) + part * (2 + a->from.head_dim), partial);
        else
            merge_next(a, &at, part, parts.count, partial);
        BARRIER();
    }
    if (a->sharing > 1) merge_kept(a, &at, blocks, parts.count, kept_of(a, &at));
}

KERNEL(attend_64, ATTENTION_THREADS, AttendArguments) { attend(&a, 2); }
KERNEL(attend_128, ATTENTION_THREADS, AttendArguments) { attend(&a, 4); }
