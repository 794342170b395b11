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

// The digit that the `missing`-th largest has, and how many of those that have it are wanted; by a warp, whose lane i counts from
// 8 · (31 − i) on: what is above is then in the lanes before.
DEVICE void find_digit(const unsigned *counts, unsigned missing, unsigned *digit, unsigned *wanted) {
    const unsigned lane = threadIdx.x, *mine = counts + 8 * (31 - lane);
    unsigned own = 0;
    UNROLL for (int i = 0; i < 8; i++) own += mine[i];
    unsigned sum = own;
    UNROLL for (unsigned step = 1; step < 32; step *= 2) {
        const unsigned other = word_of_lane(sum, lane < step ? lane : lane - step);
        sum += lane < step ? 0 : other;
    }
    unsigned above = sum - own;
    if (above >= missing || sum < missing) return;
    unsigned at = 7;
    while (above + mine[at] < missing) above += mine[at--];
    *digit = 8 * (31 - lane) + at;
    *wanted = missing - above;
}

DEVICE void put_pair(const Choice *from, Candidate c, unsigned i, unsigned *to) {
    to[0] = NO_INDEX - (unsigned)c;
    to[1] = FLOAT_BITS(from->pairs ? FLOAT_OF(from->pairs[2 * i + 1]) : from->logits[i] + 0.0f);
}

// Writes the largest of them; there is one.
DEVICE void choose_one(const Choice *from, unsigned *to) {
    SHARED Candidate largest[ANSWER_WARPS];
    SHARED unsigned places[ANSWER_WARPS];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Candidate most = 0;
    unsigned place = 0;
    for (unsigned i = threadIdx.x; i < from->count; i += ANSWER_THREADS) {
        const Candidate c = choice_at(from, i);
        if (c > most) most = c, place = i;
    }
    UNROLL for (unsigned mask = 16; mask; mask /= 2) {
        const unsigned high = word_of_lane((unsigned)(most >> 32), lane ^ mask), low = word_of_lane((unsigned)most, lane ^ mask);
        const unsigned other_place = word_of_lane(place, lane ^ mask);
        const Candidate other = (Candidate)high << 32 | low;
        if (other > most) most = other, place = other_place;
    }
    if (lane == 0) {
        largest[warp] = most;
        places[warp] = place;
    }
    BARRIER();
    if (threadIdx.x == 0) {
        for (int w = 1; w < ANSWER_WARPS; w++)
            if (largest[w] > most) most = largest[w], place = places[w];
        put_pair(from, most, place, to);
    }
}

// Writes the k largest as pairs, in no order; there are as many.
DEVICE void choose(const Choice *from, unsigned k, unsigned *to) {
    SHARED unsigned counts[256], digit, wanted_of_digit, found;
    if (k == 1) {
        choose_one(from, to);
        return;
    }
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
        if (threadIdx.x < 32) find_digit(counts, missing, &digit, &wanted_of_digit);
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
        put_pair(from, c, i, to + 2 * ATOMIC_ADD(&found, 1u));
    }
}

// Σ exp(scale · logit − max): f32 within a warp, f64 across them, in one order; the sum is the first thread's.
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
    // Others would only wait for its double precision, which few GPUs have much of.
    for (unsigned w = 0; threadIdx.x == 0 && w < ANSWER_WARPS; w++) *sum += parts[w];
    BARRIER();
}

// Most pairs that a part can have among the k largest.
DEVICE unsigned pairs_of_part(const RowWants *wants) { return wants->k < PART ? wants->k : PART; }

KERNEL(answer_parts, ANSWER_THREADS, AnswerArguments) {
    IN_TURN();
    SHARED float logits[PART];
    const RowWants wants = a.wants[blockIdx.x];
    const unsigned part = blockIdx.y, first = part * PART, count = a.width - first < PART ? a.width - first : PART;
    if (!wants.wanted) return;
    const float *row = a.logits + (unsigned long long)blockIdx.x * a.width + first;
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

// The same of all parts, whose sums are relative to their own largest; by a warp, the sum is its first lane's. It goes by `terms`,
// of which each lane has one.
DEVICE void sum_parts(const RowAnswer *answers, unsigned parts, int is_rest, double *terms, float *max, double *sum) {
    const unsigned lane = threadIdx.x;
    float most = MINUS_INFINITY;
    for (unsigned part = lane; part < parts; part += 32) most = fmaxf(most, is_rest ? answers[part].max_rest : answers[part].max_all);
    most = warp_max(most);
    double term = 0.0;
    for (unsigned part = lane; most > MINUS_INFINITY && part < parts; part += 32) {
        const RowAnswer *of = &answers[part];
        term += (is_rest ? of->sum_rest : of->sum_all) * expf((is_rest ? of->max_rest : of->max_all) - most);
    }
    terms[lane] = term;
    WARP_BARRIER();
    *max = most;
    *sum = 0.0;
    for (unsigned i = 0; lane == 0 && i < parts && i < 32; i++) *sum += terms[i];
}

KERNEL(answer, ANSWER_THREADS, AnswerArguments) {
    IN_TURN();
    const RowWants wants = a.wants[blockIdx.x];
    if (!wants.wanted) return;
    const unsigned parts = (a.width + PART - 1) / PART, pairs = pairs_of_part(&wants);
    const RowAnswer *answers = (const RowAnswer *)(a.parts + wants.parts_at);
    SHARED double terms[2][32];
    if (threadIdx.x < 32) {
        RowAnswer all;
        sum_parts(answers, parts, 0, terms[0], &all.max_all, &all.sum_all);
        sum_parts(answers, parts, 1, terms[1], &all.max_rest, &all.sum_rest);
        if (threadIdx.x == 0) ((RowAnswer *)a.answers)[blockIdx.x] = all;
    }
    const Choice from = {0, (const unsigned *)(answers + parts), 0, parts * pairs};
    choose(&from, wants.k, a.answers + wants.largest_at);
}
