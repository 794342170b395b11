// What is wanted of rows of logits, so that a few bytes of them leave the device: logarithms of sums of exponentials, the k largest,
// logits of listed ids. One block a row.
//
// The k largest are those at or above a threshold, found digit by digit: each pass counts the candidates by their next eight
// bits, and goes on with the digit that the k-th falls into. A candidate is its logit, then its index counted down: no two are equal,
// and of equal logits the lower index is the larger.

#define ANSWER_THREADS 512

typedef unsigned long long Candidate;

DEVICE Candidate candidate(float logit, unsigned index) {
    // Adding 0 makes −0 a 0, so that the two are equal. Flipped so, bits compare as the floats do.
    const unsigned bits = FLOAT_BITS(logit + 0.0f);
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Candidate)ordered << 32 | (0xffffffffu - index);
}

// Σ exp(scale · logit − max): f32 within a thread, f64 across them, in one order.
DEVICE void sum_exponentials(const float *logits, unsigned width, float scale, float *max, double *sum, float *scratch, double *parts) {
    float most = MINUS_INFINITY;
    for (unsigned i = threadIdx.x; i < width; i += ANSWER_THREADS) most = fmaxf(most, logits[i] * scale);
    *max = block_max(most, scratch);
    float part = 0.0f;
    if (*max > MINUS_INFINITY) {
        for (unsigned i = threadIdx.x; i < width; i += ANSWER_THREADS) part += expf(logits[i] * scale - *max);
    }
    parts[threadIdx.x] = part;
    BARRIER();
    for (unsigned half = ANSWER_THREADS / 2; half; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        BARRIER();
    }
    *sum = parts[0];
    BARRIER();
}

KERNEL(answer, ANSWER_THREADS, AnswerArguments) {
    SHARED float scratch[32];
    SHARED double parts[ANSWER_THREADS];
    SHARED unsigned counts[256];
    SHARED unsigned digit, wanted_of_digit, found;
    const RowWants wants = a.wants[blockIdx.x];
    float *logits = a.logits + (unsigned long long)blockIdx.x * a.stride;
    const unsigned *ids = a.ids + wants.first_listed;
    if (!wants.wanted) return;

    float max_all, max_rest;
    double sum_all, sum_rest;
    sum_exponentials(logits, a.width, 1.0f, &max_all, &sum_all, scratch, parts);
    for (unsigned i = threadIdx.x; i < wants.listed; i += ANSWER_THREADS)
        a.answers[wants.listed_at + i] = FLOAT_BITS(logits[ids[i]]);
    BARRIER();
    const unsigned left_out = wants.leave_out ? wants.listed : 0;
    for (unsigned i = threadIdx.x; i < left_out; i += ANSWER_THREADS) logits[ids[i]] = MINUS_INFINITY;
    BARRIER();
    max_rest = max_all;
    sum_rest = sum_all;
    if (left_out || wants.scale != 1.0f)
        sum_exponentials(logits, a.width, wants.scale, &max_rest, &sum_rest, scratch, parts);

    const unsigned others = a.width - left_out, k = wants.k < others ? wants.k : others;
    Candidate threshold = 0;
    unsigned missing = k;
    for (int shift = 56; shift >= 0 && missing; shift -= 8) {
        for (unsigned i = threadIdx.x; i < 256; i += ANSWER_THREADS) counts[i] = 0;
        BARRIER();
        for (unsigned i = threadIdx.x; i < a.width; i += ANSWER_THREADS) {
            const Candidate c = candidate(logits[i], i);
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
    if (k) {
        for (unsigned i = threadIdx.x; i < a.width; i += ANSWER_THREADS) {
            if (candidate(logits[i], i) >= threshold) {
                const unsigned at = wants.largest_at + 2 * ATOMIC_ADD(&found, 1u);
                a.answers[at] = i;
                a.answers[at + 1] = FLOAT_BITS(logits[i] + 0.0f);
            }
        }
    }
    BARRIER();
    for (unsigned i = threadIdx.x; i < left_out; i += ANSWER_THREADS)
        logits[ids[i]] = FLOAT_OF(a.answers[wants.listed_at + i]);
    if (threadIdx.x == 0) {
        RowAnswer *to = (RowAnswer *)a.answers + blockIdx.x;
        to->sum_all = sum_all;
        to->sum_rest = sum_rest;
        to->max_all = max_all;
        to->max_rest = max_rest;
        to->found = found;
        to->unused = 0;
    }
}
