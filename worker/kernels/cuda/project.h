// A linear layer with all that stands before and behind it.
//
// The warps of a block share the inputs, each a run of slices, and add up through shared memory in their order. So a row's sums do not
// depend on its neighbours, nor on which of the kernels makes them: it has the same bits in every batch, and in a prompt.
//
//   few rows    project_rows, project_normed: 16 rows and eight outputs at a time, the latter in turns. Takes the time to read its weights
//   many rows   project_many: a tile of rows and outputs, as large as its sums fit registers. Takes the time to multiply

#define PROJECT_WARPS ROW_WARPS
#define OUTPUTS 8
#define GROUP_ROWS 16
// Slices that a warp asks for at once. It does so while those before are multiplied: twice as many are on their way or in registers.
#if ELEMENT == 32
#define AHEAD 2
#else
#define AHEAD 4
#endif
// Of `project_many`: groups of rows, and of outputs, whose sums a warp has.
#if ELEMENT == 32
#define ROW_TILES 2
#define OUTPUT_TILES 4
#else
#define ROW_TILES 4
#define OUTPUT_TILES 8
#endif

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

// By whole warps: a gate needs what the fourth lane from it has.
DEVICE void finish(const ProjectArguments *a, unsigned row, unsigned column, float sum) {
    const unsigned long long at = (unsigned long long)row * a->out_stride;
    const int is_there = row < a->rows && is_output(a, column);
    if (a->bias && is_there) sum += a->bias[row_of_weights(a, column)];
    const float gated = a->finish == FINISH_GATED ? SHUFFLE_XOR(sum, 4) : 0.0f;
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

// Puts sums of a warp among those of the others: `parts` are of so many outputs a row, of which these are from `first` on.
DEVICE void put_sums(float *parts, unsigned outputs, unsigned first, const float *sums) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    UNROLL for (int i = 0; i < 4; i++)
        parts[(warp * GROUP_ROWS + g + i / 2 * 8) * outputs + first + 2 * t + i % 2] = sums[i];
}

// What all warps have of the sum in place `i`, in their order.
DEVICE float sum_of_warps(const float *parts, unsigned outputs, unsigned i) {
    float sum = 0.0f;
    UNROLL for (int warp = 0; warp < PROJECT_WARPS; warp++) sum += parts[warp * GROUP_ROWS * outputs + i];
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
            normalise(&a->norm, first_row + row, normed_rows + row * stride, normed_scales + row * slices, stride);
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
        put_sums(parts[round], OUTPUTS, 0, sums);
        BARRIER();
        if (threadIdx.x < GROUP_ROWS * OUTPUTS) {
            const float sum = sum_of_warps(parts[round], OUTPUTS, threadIdx.x);
            finish(a, first_row + threadIdx.x / OUTPUTS, first + threadIdx.x % OUTPUTS, sum);
        }
        round = 1 - round;
    }
}

KERNELS_TOGETHER(project_rows, ROW_THREADS, 2, ProjectArguments) { project(&a, 0); }
KERNELS_TOGETHER(project_normed, ROW_THREADS, 2, ProjectArguments) { project(&a, 1); }

// Outputs whose sums are added up over the warps at a time.
#define ADDED_TILES 4
#define ADDED (OUTPUTS * ADDED_TILES)

KERNEL(project_many, ROW_THREADS, ProjectArguments) {
    IN_TURN();
    SHARED float parts[PROJECT_WARPS * GROUP_ROWS * ADDED];
    const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const unsigned first_row = GROUP_ROWS * ROW_TILES * blockIdx.x, first = OUTPUTS * OUTPUT_TILES * blockIdx.y;
    const Run run = run_of_warp(&a);
    // Eight outputs further are four rows of weights, where they are four gates and what those are for.
    const unsigned long long step = (a.pairs ? 4 : OUTPUTS) * a.stride;
    const weight *weights = a.weights.rows + (unsigned long long)row_of_weights(&a, first + g) * a.stride + WEIGHT_LOAD * t;
    float sums[ROW_TILES][OUTPUT_TILES][4];
    UNROLL for (int i = 0; i < ROW_TILES; i++)
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++)
            UNROLL for (int k = 0; k < 4; k++) sums[i][j][k] = 0.0f;
    ROLLED for (unsigned slice = run.begin; slice < run.end; slice++) {
        Left left[ROW_TILES];
        Right right[OUTPUT_TILES];
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++)
            right[j].eight = load_eight(weights + j * step + WEIGHT_SLICE * slice, is_output(&a, first + OUTPUTS * j + g));
        UNROLL for (int i = 0; i < ROW_TILES; i++)
            left[i] = load_left(&a.inputs, a.stride, a.stride / WEIGHT_SLICE, first_row + GROUP_ROWS * i + g, a.rows, slice, 1);
        UNROLL for (int j = 0; j < OUTPUT_TILES; j++) {
#if WEIGHTS == 8
            right[j].scales = load_scales(&a, first + OUTPUTS * j, slice, 1);
#endif
            UNROLL for (int i = 0; i < ROW_TILES; i++) {
                if (first_row + GROUP_ROWS * i < a.rows) multiply_slice(sums[i][j], &left[i], &right[j]);
            }
        }
    }
    UNROLL for (int i = 0; i < ROW_TILES; i++) {
        UNROLL for (int part = 0; part < OUTPUT_TILES; part += ADDED_TILES) {
            UNROLL for (int j = 0; j < ADDED_TILES; j++) put_sums(parts, ADDED, OUTPUTS * j, sums[i][part + j]);
            BARRIER();
            for (unsigned k = threadIdx.x; k < GROUP_ROWS * ADDED; k += ROW_THREADS) {
                const unsigned row = first_row + GROUP_ROWS * i + k / ADDED, output = first + OUTPUTS * part + k % ADDED;
                finish(&a, row, output, sum_of_warps(parts, ADDED, k));
            }
            BARRIER();
        }
    }
}
