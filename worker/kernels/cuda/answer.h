// What is wanted of rows of logits, so that a few bytes of them leave the device: logarithms of sums of exponentials, the k largest,
// logits of listed ids. `answer_parts` answers for each PART logits of a row, from shared memory; `answer` makes one of its parts.
//
// The k largest are those at or above a threshold, found digit by digit: each pass counts the candidates by their next eight
// bits, and goes on with the digit that the k-th falls into. A candidate is its logit, then its index counted down: no two are equal,
// and of equal logits the lower index is the larger.

#define ANSWER_THREADS 512
#define ANSWER_WARPS (ANSWER_THREADS / 32)
#define PART 4096

typedef unsigned long long Candidate;

// What stands where there is no pair: below every other.
#define NO_INDEX 0xffffffffu

DEVICE Candidate candidate(float logit, unsigned index) {
    // Adding 0 makes −0 a 0, so that the two are equal. Flipped so, bits compare as the floats do.
    const unsigned bits = FLOAT_BITS(logit + 0.0f);
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Candidate)ordered << 32 | (NO_INDEX - index);
}

// What the k largest are chosen from: `count` logits, whose indices begin at `first`; or as many pairs.
typedef struct {
    const float *logits;
    const unsigned *pairs;
    unsigned first, count;
} Choice;

DEVICE Candidate choice_at(const Choice *from, unsigned i) {
    if (from->pairs) return candidate(FLOAT_OF(from->pairs[2 * i + 1]), from->pairs[2 * i]);
    return candidate(from->logits[i], from->first + i);
}

// Writes the k largest as pairs, in no order; there are as many.
DEVICE void choose(const Choice *from, unsigned k, unsigned *to) {
    SHARED unsigned counts[256], digit, wanted_of_digit, found;
    Candidate threshold = 0;
    unsigned missing = k;
    for (int shift = 56; shift >= 0 && missing; shift -= 8) {
        for (unsigned i = threadIdx.x; i < 256; i += ANSWER_THREADS) counts[i] = 0;
        BARRIER();
        for (unsigned i = threadIdx.x; i < from->count; i += ANSWER_THREADS) {
            const Candidate c = choice_at(from, i);
            // Shifted in two steps, as 64 is no shift.
            if (c >> shift >> 8 == threshold >> shift >> 8) ATOMIC_ADD(&counts[c >> shift & 255], 1u);
        }
        BARRIER();
        if (threadIdx.x == 0) {
            unsigned left = missing, at = 255;
            while (counts[at] < left) left -= counts[at--];
            digit = at;
            wanted_of_digit = left;
        }
        BARRIER();
        threshold |= (Candidate)digit << shift;
        // Where the digit's candidates are all wanted, what is below it does not matter.
        missing = wanted_of_digit == counts[digit] ? 0 : wanted_of_digit;
        BARRIER();
    }
    if (threadIdx.x == 0) found = 0;
    BARRIER();
    for (unsigned i = threadIdx.x; k && i < from->count; i += ANSWER_THREADS) {
        const Candidate c = choice_at(from, i);
        if (c < threshold) continue;
        const unsigned at = 2 * ATOMIC_ADD(&found, 1u);
        to[at] = NO_INDEX - (unsigned)c;
        to[at + 1] = FLOAT_BITS(from->pairs ? FLOAT_OF(from->pairs[2 * i + 1]) : from->logits[i] + 0.0f);
    }
}

// Σ exp(scale · logit − max): f32 within a warp, f64 across them, in one order.
DEVICE void sum_exponentials(const float *logits, unsigned count, float scale, float *max, double *sum) {
    SHARED float parts[ANSWER_WARPS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float most = MINUS_INFINITY;
    for (unsigned i = threadIdx.x; i < count; i += ANSWER_THREADS) most = fmaxf(most, logits[i] * scale);
    most = warp_max(most);
    if (lane == 0) parts[warp] = most;
    BARRIER();
    for (unsigned w = 0; w < ANSWER_WARPS; w++) most = fmaxf(most, parts[w]);
    BARRIER();
    float part = 0.0f;
    for (unsigned i = threadIdx.x; most > MINUS_INFINITY && i < count; i += ANSWER_THREADS) part += expf(logits[i] * scale - most);
    part = warp_sum(part);
    if (lane == 0) parts[warp] = part;
    BARRIER();
    *max = most;
    *sum = 0.0;
    for (unsigned w = 0; w < ANSWER_WARPS; w++) *sum += parts[w];
    BARRIER();
}

// Most pairs that a part can have among the k largest.
DEVICE unsigned pairs_of_part(const RowWants *wants) { return wants->k < PART ? wants->k : PART; }

KERNEL(answer_parts, ANSWER_THREADS, AnswerArguments) {
    SHARED float logits[PART];
    const RowWants wants = a.wants[blockIdx.x];
    const unsigned part = blockIdx.y, first = part * PART, count = a.width - first < PART ? a.width - first : PART;
    if (!wants.wanted) return;
    const float *row = a.logits + (unsigned long long)blockIdx.x * a.stride + first;
    const unsigned *ids = a.ids + wants.first_listed;
    for (unsigned i = threadIdx.x; i < count; i += ANSWER_THREADS) logits[i] = row[i];
    BARRIER();
    RowAnswer answer;
    sum_exponentials(logits, count, 1.0f, &answer.max_all, &answer.sum_all);
    // An id of another part is above this part's, also where the difference wraps.
    for (unsigned i = threadIdx.x; i < wants.listed; i += ANSWER_THREADS) {
        if (ids[i] - first >= count) continue;
        a.answers[wants.listed_at + i] = FLOAT_BITS(row[ids[i] - first]);
        if (wants.leave_out) logits[ids[i] - first] = MINUS_INFINITY;
    }
    BARRIER();
    answer.max_rest = answer.max_all;
    answer.sum_rest = answer.sum_all;
    if ((wants.leave_out && wants.listed) || wants.scale != 1.0f)
        sum_exponentials(logits, count, wants.scale, &answer.max_rest, &answer.sum_rest);

    RowAnswer *answers = (RowAnswer *)(a.parts + wants.parts_at);
    if (threadIdx.x == 0) answers[part] = answer;
    const unsigned pairs = pairs_of_part(&wants), there = pairs < count ? pairs : count;
    unsigned *to = (unsigned *)(answers + gridDim.y) + 2 * pairs * part;
    const Choice from = {logits, 0, first, count};
    choose(&from, there, to);
    for (unsigned i = there + threadIdx.x; i < pairs; i += ANSWER_THREADS) {
        to[2 * i] = NO_INDEX;
        to[2 * i + 1] = FLOAT_BITS(MINUS_INFINITY);
    }
}

// Adds a sum of exponentials relative to another largest.
DEVICE void add_exponentials(float *max, double *sum, float other_max, double other_sum) {
    const float most = fmaxf(*max, other_max);
    if (most == MINUS_INFINITY) return;
    *sum = *sum * exp((double)*max - most) + other_sum * exp((double)other_max - most);
    *max = most;
}

KERNEL(answer, ANSWER_THREADS, AnswerArguments) {
    const RowWants wants = a.wants[blockIdx.x];
    if (!wants.wanted) return;
    const unsigned parts = (a.width + PART - 1) / PART, pairs = pairs_of_part(&wants);
    const RowAnswer *answers = (const RowAnswer *)(a.parts + wants.parts_at);
    if (threadIdx.x == 0) {
        RowAnswer all = answers[0];
        for (unsigned part = 1; part < parts; part++) {
            add_exponentials(&all.max_all, &all.sum_all, answers[part].max_all, answers[part].sum_all);
            add_exponentials(&all.max_rest, &all.sum_rest, answers[part].max_rest, answers[part].sum_rest);
        }
        ((RowAnswer *)a.answers)[blockIdx.x] = all;
    }
    const Choice from = {0, (const unsigned *)(answers + parts), 0, parts * pairs};
    choose(&from, wants.k, a.answers + wants.largest_at);
}
