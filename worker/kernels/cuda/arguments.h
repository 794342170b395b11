// What the kernels take. `src/cuda.rs` has the same structs, field by field: pointers first, so that there are no gaps.

typedef struct {
    const unsigned *tokens;     // [T]
    const unsigned *positions;  // [T]
    const element *embedding;   // [V_local, C]
    const float *position_embedding;  // [P, C], or null: only the first rank adds positions
    float *x;                   // [T, C]
    unsigned first_token;       // of this rank's slice of the vocabulary
    unsigned tokens_local;      // V_local
    unsigned width;             // C
} EmbedArguments;

typedef struct {
    float *x;             // [T, C]: the residual stream
    const float *delta;   // [T, C]: what a row-parallel layer adds to it, or null
    const float *bias;    // [C]: that layer's
    const float *gain;    // [C]
    const float *shift;   // [C]
    const unsigned *rows; // [R]: which rows are wanted, or null for all; where given, x is left as it is
    element *out;         // [T or R, C]
    unsigned width;       // C
    float epsilon;
} NormArguments;

typedef struct {
    const float *sums;   // [T, F_local]
    const float *bias;   // [F_local]
    element *out;        // [T, F_local]
    unsigned count;      // T · F_local
    unsigned width;      // F_local
    unsigned activation; // as `Activation` counts
} ActivateArguments;

// Where rows stand: row t is at positions[t] of sequence sequences[t], whose block i is tables[sequence · table_blocks + i].
typedef struct {
    const unsigned *positions; // [T]
    const unsigned *sequences; // [T]
    const unsigned *tables;    // [S, table_blocks]
} Placement;

typedef struct {
    float *qkv;         // [T, 3 · H_local · D]; the bias is added to q in place
    const float *bias;  // [3 · H_local · D]
    element *cache;     // one layer's pool
    Placement at;
    unsigned heads;     // H_local
    unsigned head_dim;  // D
    unsigned table_blocks;
} WriteKvArguments;

typedef struct {
    const float *qkv;      // as write_kv leaves it
    const element *cache;  // one layer's pool
    element *out;          // [T, H_local · D]
    const unsigned *tiles; // (first row, rows) of each tile, rows of one sequence in order; or null: each row is one
    Placement at;
    unsigned heads;
    unsigned head_dim;
    unsigned table_blocks;
    float scale;
} AttendArguments;

// What is wanted of one row of logits. Offsets count 32-bit words of the answers.
typedef struct {
    unsigned wanted;      // 0 for a row that only fills a batch
    unsigned k;           // how many of the largest
    unsigned listed;      // how many ids are listed
    unsigned first_listed;// where in `ids`
    unsigned leave_out;   // whether the listed are left out of `rest` and of the largest
    float scale;          // of logits in `rest`
    unsigned listed_at;   // logits of the listed ids: `listed` words
    unsigned largest_at;  // k pairs of an index and a logit, in no order
} RowWants;

// The first words of the answers, one for each row.
typedef struct {
    double sum_all;   // Σ exp(logit − max_all)
    double sum_rest;  // Σ exp(scale · logit − max_rest)
    float max_all;
    float max_rest;
    unsigned found;   // pairs that there are: fewer than k of a short slice
    unsigned unused;
} RowAnswer;

typedef struct {
    float *logits;        // [R, stride]; as before when the kernel is done
    const RowWants *wants;// [R]
    const unsigned *ids;  // listed ids, as indices of this rank's slice
    unsigned *answers;
    unsigned width;       // V_local
    unsigned stride;
} AnswerArguments;
