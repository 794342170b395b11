// A linear layer of up to 16 rows, with all that stands before and behind it: what a decode step is made of.
//
// Such a product takes the time to read its weights, each of which is read once. A block takes eight outputs at a time; its warps
// share their inputs, slice by slice, ask for all of their weights before they use the first, and add up through shared memory.
// A row's sums do not depend on its neighbours: it has the same bits in every batch of up to 16.

#define PROJECT_WARPS ROW_WARPS
#define OUTPUTS 8
// Slices that a warp asks for at once.
#define AHEAD 4

// As `Finish` in `src/cuda.rs` counts them.
#define FINISH_QKV 0
#define FINISH_ACTIVATION 1
#define FINISH_RESIDUAL 2
#define FINISH_LOGITS 3

DEVICE void finish(const ProjectArguments *a, unsigned row, unsigned column, float sum) {
    const unsigned long long at = (unsigned long long)row * a->out_stride + column;
    switch (a->finish) {
    case FINISH_QKV: store_qkv(&a->to, row, column, sum + a->bias[column]); break;
    case FINISH_ACTIVATION: a->out[at] = narrow(activated(sum + a->bias[column], a->activation)); break;
    // The ranks' x are added up behind it: one of them brings x as it was, and the bias.
    case FINISH_RESIDUAL: a->sums[at] = a->bias ? a->sums[at] + (sum + a->bias[column]) : sum; break;
    default: a->sums[at] = sum;
    }
}

// `normed` is a constant to the compiler, so that it knows where the inputs lie.
DEVICE void project(const ProjectArguments *a, const int normed) {
    DYNAMIC_SHARED(shared);
    SHARED float parts[PROJECT_WARPS][MOST_ROWS * OUTPUTS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const unsigned slices = a->stride / SLICE;
    // Rows side by side in shared memory would begin in the same bank.
    const unsigned stride = normed ? a->stride + SLICE : a->stride;
    if (normed) {
        // The weights do not wait for what is being normalised.
        const unsigned column = OUTPUTS * blockIdx.x + g;
        for (unsigned slice = warp; column < a->outputs && slice < slices; slice += PROJECT_WARPS)
            PREFETCH(a->weights + (unsigned long long)column * a->stride + SLICE * slice + 8 * t);
        normalise(&a->norm, 0, a->rows, (element *)shared, stride);
        BARRIER();
    }
    const element *inputs = normed ? (const element *)shared : a->inputs;
    for (unsigned first = OUTPUTS * blockIdx.x; first < a->outputs; first += OUTPUTS * gridDim.x) {
        const unsigned column = first + g;
        const element *weights = a->weights + (unsigned long long)column * a->stride;
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (unsigned begin = warp; begin < slices; begin += PROJECT_WARPS * AHEAD) {
            Eight right[AHEAD], low[AHEAD], high[AHEAD];
            UNROLL for (int i = 0; i < AHEAD; i++) {
                const unsigned slice = begin + PROJECT_WARPS * i, at = SLICE * slice + 8 * t;
                right[i] = load_eight(weights + at, slice < slices && column < a->outputs);
                low[i] = load_eight(inputs + g * stride + at, slice < slices && g < a->rows);
                high[i] = load_eight(inputs + (g + 8) * stride + at, slice < slices && g + 8 < a->rows);
            }
            UNROLL for (int i = 0; i < AHEAD; i++) multiply(sums, &low[i], &high[i], &right[i]);
        }
        UNROLL for (int i = 0; i < 4; i++) parts[warp][(g + i / 2 * 8) * OUTPUTS + 2 * t + i % 2] = sums[i];
        BARRIER();
        const unsigned row = threadIdx.x / OUTPUTS, output = first + threadIdx.x % OUTPUTS;
        if (row < a->rows && output < a->outputs) {
            float sum = 0.0f;
            UNROLL for (int w = 0; w < PROJECT_WARPS; w++) sum += parts[w][threadIdx.x];
            finish(a, row, output, sum);
        }
        BARRIER();
    }
}

KERNELS_TOGETHER(project_rows, ROW_THREADS, 2, ProjectArguments) { project(&a, 0); }
KERNELS_TOGETHER(project_normed, ROW_THREADS, 2, ProjectArguments) { project(&a, 1); }
