// What the kernels take. `src/cuda.rs` has the same structs, field by field: pointers first, so that there are no gaps.

// Rows of weights, one for each output: of bytes a unit of inputs takes whole slices of 64, each with a scale, the same within a unit.
typedef struct {
    const weight *rows;            // [N, stride]
    const unsigned short *scales;  // [stride / 64, N] bf16; null where weights are no bytes
} WeightRows;

// What is multiplied with them, likewise.
typedef struct {
    const weight *rows;   // [T, stride]
    const float *scales;  // [T, stride / 64]; null where they are no bytes
} InputRows;

typedef struct {
    const unsigned *tokens;     // [T]
    const unsigned *positions;  // [T]
    WeightRows embedding;          // [V_local, stride]
    const float *position_embedding;  // [P, C], or null: only the first rank adds positions
    float *x;                   // [T, C]
    unsigned first_token;       // of this rank's slice of the vocabulary
    unsigned tokens_local;      // V_local
    unsigned width;             // C
    unsigned stride;
} EmbedArguments;

typedef struct {
    float *x;             // [T, C]: the residual stream, or null where nothing is to be normalised
    const float *gain;    // [C], or null
    const float *shift;   // [C], or null
    const unsigned *rows; // [R]: which rows are wanted, or null for all
    unsigned width;       // C
    float epsilon;
    unsigned is_centred;  // LayerNorm, else RMSNorm: nothing is taken away
    unsigned unused;
} Norm;

typedef struct {
    Norm norm;
    weight *out;          // [T or R, stride]
    float *scales;        // [T or R, stride / 64], of bytes
    unsigned count;       // T or R
    unsigned stride;
} NormArguments;

// What is carried becomes bytes.
typedef struct {
    const float *x;       // [T, x_stride]
    signed char *out;     // [T, stride]
    float *scales;        // [T, stride / 64]
    unsigned count;       // T
    unsigned width;
    unsigned x_stride;    // from one row to the next
    unsigned stride;
    unsigned unit;        // inputs that have a scale, up to 128, which take whole slices of 64 in `out`
    unsigned unused;
} QuantiseArguments;

// What the stream begins with, where that is more than embeddings.
typedef struct {
    Norm norm;                  // of embeddings, [T + S, C]: those of the tokens before each sequence come last
    const unsigned *positions;  // [T]
    const unsigned *sequences;  // [T]
    const float *gate;          // [G], or null where the token before does not count
    float *x;                   // [T, C]
    unsigned count;             // T
    unsigned channels;          // G
    float scale;                // of what comes of the gate
    unsigned unused;
} BeginArguments;

// x = factor · x + other_factor · other
typedef struct {
    float *x;            // [T, C]
    const float *other;  // [T, C], or null
    float *kept;         // [T, C]: where x goes as it was, or null
    float factor;
    float other_factor;
    unsigned width;      // C
    unsigned unused;
} MixArguments;

// Where rows stand: row t is at positions[t] of sequence sequences[t], whose block i is tables[sequence · table_blocks + i].
typedef struct {
    const unsigned *positions; // [T]
    const unsigned *sequences; // [T]
    const unsigned *tables;    // [S, table_blocks]
} Placement;

// Where queries, keys and values of rows go.
typedef struct {
    element *queries;      // [T, H_local, head_stride]
    element *cache;        // one layer's pool
    Placement at;
    unsigned heads;        // H_local
    unsigned kv_heads;     // KV_local
    unsigned head_dim;     // D
    unsigned head_stride;  // D, rounded up
    unsigned table_blocks;
    unsigned unused;
} QkvPlaces;

// By which angles rows are turned.
typedef struct {
    const unsigned *positions; // [T]
    const float *frequencies;  // [D / 2]
    float *turns;              // [T, 2, D / 2]: cosines, then sines
    unsigned count;            // T · D / 2
    unsigned half;             // D / 2
    float factor;              // of both
    unsigned is_backwards;
    unsigned is_rounded;       // to bf16
    unsigned unused;
} TurnsArguments;

// A row of a table for each token, which is added to its values.
typedef struct {
    Norm norm;               // of the block's input, of which channels make the gates
    const unsigned *tokens;  // [T]
    WeightRows table;         // [V, stride], where a head's columns are a unit; null where there is none
    const float *gates;      // [G, KV_local]
    unsigned stride;
    unsigned channels;       // G
    float factor;            // of the gates
    unsigned rows;           // V
} AddedValues;

// What becomes of queries, keys and values before they are stored.
typedef struct {
    QkvPlaces to;
    const float *sums;        // [T, (H_local + 2 · KV_local) · D]
    const float *bias;        // of as many, or null
    const float *turns;
    const float *query_gain;  // [D]: each head is normed first, or null
    const float *key_gain;
    float factor;             // what a turned head is normed and multiplied by, or 0
    float epsilon;
    AddedValues added;
} TurnArguments;

typedef struct {
    QkvPlaces from;
    carried *out;          // [T, out_stride]
    float *parts;          // what is still to be merged: [T, H_local, D], or where blocks share rows [T, H_local, MOST_PARTS, 2 + D]
    unsigned *arrived;     // [T, H_local], zeros: of the blocks that share a row, those that are done
    const unsigned *tiles; // (first row, rows) of each tile, rows of one sequence in order; or null: each row is one; those of a tile are of the
                           // same sixteen positions
    unsigned tile_rows;    // most rows of a tile
    unsigned out_stride;
    float scale;
    unsigned group;        // query heads that share keys and values
    unsigned skipped;      // of them, those of the first group that are another rank's
    unsigned window;       // how many positions before its own a row sees, below 2^31
    unsigned sharing;      // blocks that share the history of a row; 1 with tiles
    unsigned unused;
} AttendArguments;

typedef struct {
    Norm norm;              // of the inputs; or, where its x is null:
    InputRows inputs;       // [T, stride]
    WeightRows weights;     // [N, stride]
    const float *bias;      // [N], or null
    QkvPlaces to;           // for FINISH_QKV
    carried *out;           // [T, out_stride], for FINISH_ACTIVATION and FINISH_GATED
    float *sums;            // [T, out_stride], for the others
    unsigned rows;          // T
    unsigned outputs;       // N; for FINISH_GATED twice the pairs, rounded up to eight
    unsigned pairs;         // for FINISH_GATED how many gates, behind which lie as many others; else 0
    unsigned stride;        // K, rounded up to whole slices
    unsigned out_stride;
    unsigned finish;
    unsigned activation;
    float cap;              // what FINISH_SUMS lets no sum go beyond, softly, or 0
} ProjectArguments;

// What is wanted of one row of logits. Offsets count 32-bit words.
typedef struct {
    unsigned wanted;      // 0 for a row that only fills a batch
    unsigned k;           // how many of the largest
    unsigned listed;      // how many ids are listed
    unsigned first_listed;// where in `ids`
    unsigned leave_out;   // whether the listed are left out of `rest` and come last among the largest
    float scale;          // of logits in `rest`
    unsigned listed_at;   // in the answers: logits of the listed ids, `listed` words
    unsigned largest_at;  // in the answers: k pairs of an index and a logit, in no order
    unsigned parts_at;    // in `parts`: for each part a RowAnswer; then for each as many pairs as it can have among the k
    unsigned unused;
} RowWants;

// The first words of the answers, one for each row.
typedef struct {
    double sum_all;   // Σ exp(logit − max_all)
    double sum_rest;  // Σ exp(scale · logit − max_rest)
    float max_all;
    float max_rest;
} RowAnswer;

typedef struct {
    const float *logits;  // [R, V_local]
    const RowWants *wants;// [R]
    const unsigned *ids;  // listed ids, as indices of this rank's slice
    unsigned *parts;
    unsigned *answers;
    unsigned width;       // V_local
    unsigned unused;
} AnswerArguments;
