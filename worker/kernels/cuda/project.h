// A linear layer with all that stands before and behind it.
//
// The warps of a block share the inputs, each a run of slices, and add up through shared memory in their order. So a row's sums do not
// depend on its neighbours, nor on which of the kernels makes them: it has the same bits in every batch, and in a prompt.
//
//   few rows    project_rows, project_normed: 16 rows and eight outputs at a time, the latter in turns. Takes the time to read its weights
//   many rows   project_many: a tile of rows and outputs, through shared memory, as large as its sums fit registers. Takes the time to
//               multiply

#define PROJECT_WARPS ROW_WARPS
#define OUTPUTS 8
#define GROUP_ROWS 16
// Slices that a warp asks for at once. It does so while those before are multiplied: twice as many are on their way or in registers.
#if ELEMENT == 32
#define AHEAD 2
#else
#define AHEAD 4
#endif
// Of `project_many`: groups of rows, and of outputs, whose sums a warp has, and how its warps lie beside each other.
#if ELEMENT == 32
#define ROW_TILES 1
#define OUTPUT_TILES 2
#else
#define ROW_TILES 4
#define OUTPUT_TILES 4
#endif
#define WARPS_DOWN 2
#define WARPS_ACROSS (PROJECT_WARPS / WARPS_DOWN)
#define TILE_INPUTS (GROUP_ROWS * ROW_TILES * WARPS_DOWN)
#define TILE_OUTPUTS (OUTPUTS * OUTPUT_TILES * WARPS_ACROSS)
// Slices of a tile that are on their way or in shared memory, a line a row.
#define STAGES 4
#define LINE_BYTES (WEIGHT_SLICE * sizeof(weight))

// As `Finish` in `src/cuda.rs` counts them.
#define FINISH_QKV 0
#define FINISH_ACTIVATION 1
#define FINISH_ADDED 2
#define FINISH_GATED 3

// Of a gated layer eight outputs are four gates and the four that they are for, which lie `pairs` rows further.
DEVICE unsigned pair_of(unsigned output) { return output / OUTPUTS * 4 + output % 4; }

DEVICE int is_output(const ProjectArguments *a, unsigned output) {
    return output < a->outputs && (!a->pairs || pair_of(output) < a->pairs);
}

DEVICE unsigned row_of_weights(const ProjectArguments *a, unsigned output) {
    return a->pairs ? pair_of(output) + output % OUTPUTS / 4 * a->pairs : output;
}

// By whole warps: a gate needs what the lane has that is `partner` away, a constant to the compiler.
DEVICE void finish(const ProjectArguments *a, unsigned row, unsigned column, float sum, const unsigned partner) {
    const unsigned long long at = (unsigned long long)row * a->out_stride;
    const int is_there = row < a->rows && is_output(a, column);
    if (a->bias && is_there) sum += a->bias[row_of_weights(a, column)];
    const float gated = a->finish == FINISH_GATED ? SHUFFLE_XOR(sum, partner) : 0.0f;
    if (!is_there) return;
    switch (a->finish) {
    case FINISH_QKV: store_head(&a->to, row, column / a->to.head_dim, column % a->to.head_dim, sum); break;
    case FINISH_ACTIVATION: a->out[at + column] = carry(activated(sum, a->activation)); break;
    // The ranks' x are added up behind it: one of them brings x as it was, and the bias.
    case FINISH_ADDED: a->sums[at + column] += sum; break;
    case FINISH_GATED:
        if (column % OUTPUTS < 4) a->out[at + pair_of(column)] = carry(activated(sum, a->activation) * gated);
        break;
    default: a->sums[at + column] = a->cap != 0.0f ? a->cap * tanhf(sum / a->cap) : sum;
    }
}

// Puts sums of a warp among those of the others.
DEVICE void put_sums(float *parts, const float *sums) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    UNROLL for (int i = 0; i < 4; i++)
        parts[(warp * GROUP_ROWS + g + i / 2 * 8) * OUTPUTS + 2 * t + i % 2] = sums[i];
}

// What all warps have of the sum in place `i`, in their order.
DEVICE float sum_of_warps(const float *parts, unsigned i) {
    float sum = 0.0f;
    UNROLL for (int warp = 0; warp < PROJECT_WARPS; warp++) sum += parts[warp * GROUP_ROWS * OUTPUTS + i];
    return sum;
}

// The slices of a warp, from `begin` to `end`.
typedef struct {
    unsigned begin, end;
} Run;

DEVICE Run run_of_warp(const ProjectArguments *a) {
    const unsigned slices = a->stride / WEIGHT_SLICE, warp = threadIdx.x / 32;
    const Run run = {slices * warp / PROJECT_WARPS, slices * (warp + 1) / PROJECT_WARPS};
    return run;
}

// What a lane has of a slice of two inputs, g and g + 8, and of the weights of output g; of bytes with their scales, which for weights
// are those of outputs 2t and 2t + 1, the first in the lower half.
typedef struct {
    Eight low, high;
#if WEIGHTS == 8
    float scales[2];
#endif
} Left;

typedef struct {
    Eight eight;
#if WEIGHTS == 8
    unsigned scales;
#endif
} Right;

DEVICE void multiply_slice(float *sums, const Left *left, const Right *right) {
#if WEIGHTS == 8
    const float scales[2] = {FLOAT_OF(right->scales << 16), FLOAT_OF(right->scales & 0xffff0000u)};
    multiply_bytes(sums, &left->low, &left->high, &right->eight, left->scales, scales);
#else
    multiply(sums, &left->low, &left->high, &right->eight);
#endif
}

// Row `row` of inputs and that eight further, of which there are `rows`; zeros where there are none, or where the slice is not `present`.
DEVICE Left load_left(const InputRows *inputs, unsigned stride, unsigned scale_stride, unsigned row, unsigned rows, unsigned slice, int present) {
    const weight *from = inputs->rows + (unsigned long long)row * stride + WEIGHT_SLICE * slice + WEIGHT_LOAD * (threadIdx.x % 4);
    Left left;
    left.low = load_eight(from, present && row < rows);
    left.high = load_eight(from + 8 * (unsigned long long)stride, present && row + 8 < rows);
#if WEIGHTS == 8
    const float *scales = inputs->scales + (unsigned long long)row * scale_stride + slice;
    left.scales[0] = present && row < rows ? scales[0] : 0.0f;
    left.scales[1] = present && row + 8 < rows ? scales[8 * (unsigned long long)scale_stride] : 0.0f;
#else
    (void)scale_stride;
#endif
    return left;
}

#if WEIGHTS == 8

// Of outputs 2t and 2t + 1 of the eight from `first` on.
DEVICE unsigned load_scales(const ProjectArguments *a, unsigned first, unsigned slice, int present) {
    const unsigned output = first + 2 * (threadIdx.x % 4), count = a->pairs ? 2 * a->pairs : a->outputs;
    const unsigned short *scales = a->weights.scales + (unsigned long long)slice * count;
    unsigned both = 0;
    if (present && is_output(a, output)) both = scales[row_of_weights(a, output)];
    if (present && is_output(a, output + 1)) both |= (unsigned)scales[row_of_weights(a, output + 1)] << 16;
    return both;
}

#endif

// Asks for weights of the eight outputs from `first` on, of AHEAD slices from `slice` on: zeros where there are none.
DEVICE void ask(const ProjectArguments *a, unsigned first, unsigned slice, unsigned end, Right *to) {
    const unsigned lane = threadIdx.x % 32, output = first + lane / 4;
    const unsigned long long row = row_of_weights(a, output);
    const weight *weights = a->weights.rows + row * a->stride + WEIGHT_SLICE * slice + WEIGHT_LOAD * (lane % 4);
    const int is_there = is_output(a, output);
    UNROLL for (int i = 0; i < AHEAD; i++) to[i].eight = load_weights(weights + WEIGHT_SLICE * i, slice + i < end && is_there);
#if WEIGHTS == 8
    UNROLL for (int i = 0; i < AHEAD; i++) to[i].scales = load_scales(a, first, slice + i, slice + i < end);
#endif
}

// `normed` is a constant to the compiler, so that it knows where the inputs lie.
DEVICE void project(const ProjectArguments *a, const int normed) {
    // Rows of inputs; of bytes their scales behind them.
    DYNAMIC_SHARED(shared);
    // Two, so that one round's are read while the next one's are written.
    SHARED float parts[2][PROJECT_WARPS * GROUP_ROWS * OUTPUTS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const unsigned first_row = GROUP_ROWS * blockIdx.y, slices = a->stride / WEIGHT_SLICE;
    const unsigned rows = a->rows - first_row < GROUP_ROWS ? a->rows - first_row : GROUP_ROWS;
    const Run run = run_of_warp(a);
    // Rows side by side in shared memory would begin in the same bank.
    const unsigned stride = normed ? a->stride + WEIGHT_SLICE : a->stride;
    Right right[AHEAD], next[AHEAD];
    // Weights wait neither for the kernel before nor for what is being normalised.
    BEGIN_NEXT();
    ask(a, OUTPUTS * blockIdx.x, run.begin, run.end, right);
    const unsigned output = OUTPUTS * blockIdx.x + g;
    const weight *weights = a->weights.rows + (unsigned long long)row_of_weights(a, output) * a->stride + WEIGHT_LOAD * t;
    for (unsigned slice = run.begin + AHEAD; is_output(a, output) && slice < run.end; slice++)
        PREFETCH(weights + WEIGHT_SLICE * slice);
    AFTER_PREVIOUS();
    weight *normed_rows = (weight *)shared;
    float *normed_scales = (float *)(normed_rows + rows * stride);
    if (normed) {
        for (unsigned row = warp; row < rows; row += PROJECT_WARPS)
            normalise(&a->norm, first_row + row, normed_rows + row * stride, normed_scales + row * slices, a->stride);
        BARRIER();
    }
    const InputRows from_memory = {a->inputs.rows + (unsigned long long)first_row * stride,
                                a->inputs.scales + (unsigned long long)first_row * slices};
    const InputRows from_shared = {normed_rows, normed_scales};
    const InputRows inputs = normed ? from_shared : from_memory;
    unsigned round = 0;
    for (unsigned first = OUTPUTS * blockIdx.x; first < a->outputs; first += OUTPUTS * gridDim.x) {
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        ROLLED for (unsigned slice = run.begin; slice < run.end; slice += AHEAD) {
            // Behind the last of these outputs come the first of the next.
            const int is_last = slice + AHEAD >= run.end;
            ask(a, is_last ? first + OUTPUTS * gridDim.x : first, is_last ? run.begin : slice + AHEAD, run.end, next);
            Left left[AHEAD];
            UNROLL for (int i = 0; i < AHEAD; i++)
                left[i] = load_left(&inputs, stride, slices, g, rows, slice + i, slice + i < run.end);
            UNROLL for (int i = 0; i < AHEAD; i++) multiply_slice(sums, &left[i], &right[i]);
            UNROLL for (int i = 0; i < AHEAD; i++) right[i] = next[i];
        }
        put_sums(parts[round], sums);
        BARRIER();
        if (threadIdx.x < GROUP_ROWS * OUTPUTS) {
            const float sum = sum_of_warps(parts[round], threadIdx.x);
            finish(a, first_row + threadIdx.x / OUTPUTS, first + threadIdx.x % OUTPUTS, sum, 4);
        }
        round = 1 - round;
    }
}

KERNELS_TOGETHER(project_rows, ROW_THREADS, 2, ProjectArguments) { project(&a, 0); }
KERNELS_TOGETHER(project_normed, ROW_THREADS, 2, ProjectArguments) { project(&a, 1); }

// Asks for a slice of a tile: lines of inputs, then of weights, zeros where there are none.
DEVICE void fetch(const ProjectArguments *a, unsigned slice, char *stage) {
    const unsigned first_row = TILE_INPUTS * blockIdx.x, first = TILE_OUTPUTS * blockIdx.y, of_line = LINE_BYTES / 16;
    UNROLL for (unsigned i = 0; i < (TILE_INPUTS + TILE_OUTPUTS) * of_line / ROW_THREADS; i++) {
        const unsigned piece = threadIdx.x + ROW_THREADS * i, line = piece / of_line;
        const unsigned row = first_row + line, output = first + line - TILE_INPUTS;
        const int is_input = line < TILE_INPUTS, is_there = is_input ? row < a->rows : is_output(a, output);
        const weight *rows = is_input ? a->inputs.rows : a->weights.rows;
        const unsigned long long at = is_there ? is_input ? row : row_of_weights(a, output) : 0;
        const char *from = (const char *)(rows + at * a->stride + WEIGHT_SLICE * slice) + 16 * (piece % of_line);
        COPY_ASYNC(stage + 16 * piece, from, is_there);
    }
}

// The sums of a row are those of the runs that the warps have of few rows, added up in the same order.
KERNEL(project_many, ROW_THREADS, ProjectArguments) {
    IN_TURN();
    DYNAMIC_SHARED(shared);
    const unsigned stage_bytes = (TILE_INPUTS + TILE_OUTPUTS) * LINE_BYTES, slices = a.stride / WEIGHT_SLICE;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    // Of the tile.
    const unsigned top = GROUP_ROWS * ROW_TILES * (warp / WARPS_ACROSS), left_most = OUTPUTS * OUTPUT_TILES * (warp % WARPS_ACROSS);
    const unsigned first_row = TILE_INPUTS * blockIdx.x + top, first = TILE_OUTPUTS * blockIdx.y + left_most;
    float sums[ROW_TILES][OUTPUT_TILES][4], totals[ROW_TILES][OUTPUT_TILES][4];
    UNROLL for (int i = 0; i < ROW_TILES; i++)
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++)
            UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = totals[i][j][k] = 0.0f;
    UNROLL for (unsigned stage = 0; stage < STAGES - 1; stage++) {
        if (stage < slices) fetch(&a, stage, (char *)shared + stage * stage_bytes);
        COMMIT_COPIES();
    }
    unsigned run = 0;
    ROLLED for (unsigned slice = 0; slice < slices; slice++) {
        Left left[ROW_TILES];
        Right right[OUTPUT_TILES];
#if WEIGHTS == 8
        UNROLL for (int i = 0; i < ROW_TILES; i++) {
            UNROLL for (int half = 0; half < 2; half++) {
                const unsigned row = first_row + GROUP_ROWS * i + g + 8 * half;
                left[i].scales[half] = row < a.rows ? a.inputs.scales[(unsigned long long)row * slices + slice] : 0.0f;
            }
        }
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++) right[j].scales = load_scales(&a, first + OUTPUTS * j, slice, 1);
#endif
        WAIT_COPIES(STAGES - 2);
        BARRIER();
        const unsigned next = slice + STAGES - 1;
        if (next < slices) fetch(&a, next, (char *)shared + next % STAGES * stage_bytes);
        COMMIT_COPIES();
        const char *lines = (const char *)shared + slice % STAGES * stage_bytes + t * sizeof(Eight);
        UNROLL for (int i = 0; i < ROW_TILES; i++) {
            left[i].low = *(const Eight *)(lines + (top + GROUP_ROWS * i + g) * LINE_BYTES);
            left[i].high = *(const Eight *)(lines + (top + GROUP_ROWS * i + g + 8) * LINE_BYTES);
        }
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++)
            right[j].eight = *(const Eight *)(lines + (TILE_INPUTS + left_most + OUTPUTS * j + g) * LINE_BYTES);
        UNROLL for (int i = 0; i < ROW_TILES; i++)
            UNROLL for (int j = 0; j < OUTPUT_TILES; j++) multiply_slice(sums[i][j], &left[i], &right[j]);
        if (slice + 1 < slices * (run + 1) / PROJECT_WARPS) continue;
        while (run < PROJECT_WARPS && slices * (run + 1) / PROJECT_WARPS <= slice + 1) run++;
        UNROLL for (int i = 0; i < ROW_TILES; i++) {
            UNROLL for (int j = 0; j < OUTPUT_TILES; j++) {
                UNROLL for (int k = 0; k < 4; k++) {
                    totals[i][j][k] += sums[i][j][k];
                    sums[i][j][k] = 0.0f;
                }
            }
        }
    }
    UNROLL for (int i = 0; i < ROW_TILES; i++) {
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++) {
            UNROLL for (int k = 0; k < 4; k++) {
                const unsigned row = first_row + GROUP_ROWS * i + g + k / 2 * 8;
                finish(&a, row, first + OUTPUTS * j + 2 * t + k % 2, totals[i][j][k], 2);
            }
        }
    }
}
