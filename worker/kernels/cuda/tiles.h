// Products of small tiles by a warp, on tensor cores where the element has them.
//
// All products here are of 32 terms between rows that lie in memory as they are: 16 rows on the left, 8 on the right. Lane 4g + t has
// terms 8t … 8t + 7 of its rows, so that one load brings them. Tensor cores take a product's terms in pairs that lie elsewhere; as
// sums do not mind the order, both sides just number them alike.

#define SLICE 32

// Where weights are bytes, products with them are of slices of 64: a lane's sixteen bytes are as long as its eight elements.
#if WEIGHTS == 8
#define WEIGHT_SLICE 64
// What a unit of inputs that has a scale is filled up to.
#define UNIT_ROUND WEIGHT_SLICE
#else
#define WEIGHT_SLICE SLICE
#define UNIT_ROUND 1
#endif
#define WEIGHT_LOAD (WEIGHT_SLICE / 4)

// Eight elements that lie side by side.
#if ELEMENT == 32
typedef struct ALIGNED(32) {
    float at[8];
} Eight;
#else
typedef struct ALIGNED(16) {
    unsigned pair[4];
} Eight;
#endif

// Those at `from`, or zeros where `present` is 0.
DEVICE Eight load_eight(const void *from, int present) {
    Eight eight = {{0}};
    if (present) eight = *(const Eight *)from;
    return eight;
}

// The same of weights.
DEVICE Eight load_weights(const weight *from, int present) {
    Eight eight;
    unsigned words[sizeof(Eight) / 4] = {0};
    UNROLL for (unsigned i = 0; i < sizeof(Eight) / 4; i += 4) LOAD_ONCE(words + i, (const char *)from + 4 * i, present);
#if ELEMENT == 32
    UNROLL for (int i = 0; i < 8; i++) eight.at[i] = FLOAT_OF(words[i]);
#else
    UNROLL for (int i = 0; i < 4; i++) eight.pair[i] = words[i];
#endif
    return eight;
}

// Elements 2i and 2i + 1 of eight, of the given values.
DEVICE void set_pair(Eight *eight, int i, float first, float second) {
#if ELEMENT == 32
    eight->at[2 * i] = first;
    eight->at[2 * i + 1] = second;
#elif defined(__CUDACC__) && ELEMENT == 16
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(eight->pair[i]) : "f"(second), "f"(first));
#elif defined(__CUDACC__)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(eight->pair[i]) : "f"(second), "f"(first));
#else
    eight->pair[i] = (unsigned)narrow(second) << 16 | narrow(first);
#endif
}

// Element i of each of eight rows, side by side.
DEVICE Eight column_of(const Eight *rows, int i) {
    Eight column;
#if ELEMENT == 32
    UNROLL for (int k = 0; k < 8; k++) column.at[k] = rows[k].at[i];
#else
    UNROLL for (int k = 0; k < 4; k++) {
        const unsigned first = rows[2 * k].pair[i / 2], second = rows[2 * k + 1].pair[i / 2];
        column.pair[k] = i % 2 ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
    }
#endif
    return column;
}

// sums += left · rightᵀ. A lane has rows g (`low`) and g + 8 (`high`) on the left, row g on the right, and of the sums
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
#if ELEMENT != 32

DEVICE void multiply(float *sums, const Eight *low, const Eight *high, const Eight *right) {
    UNROLL for (int i = 0; i < 4; i += 2) {
        TENSOR_PRODUCT(sums, low->pair[i], high->pair[i], low->pair[i + 1], high->pair[i + 1], right->pair[i],
                       right->pair[i + 1]);
    }
}

#else

#define MULTIPLYING_WARPS 8

// Tensor cores have no f32: through shared memory.
DEVICE void multiply(float *sums, const Eight *low, const Eight *high, const Eight *right) {
    // Rows on the left, then those on the right; four more columns let lanes that read side by side meet other banks.
    SHARED float rows[MULTIPLYING_WARPS][16 + 8][SLICE + 4];
    const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    float(*tile)[SLICE + 4] = rows[threadIdx.x / 32];
    UNROLL for (int i = 0; i < 8; i++) {
        tile[g][8 * t + i] = low->at[i];
        tile[8 + g][8 * t + i] = high->at[i];
        tile[16 + g][8 * t + i] = right->at[i];
    }
    WARP_BARRIER();
    UNROLL for (int i = 0; i < 4; i++) {
        const float *one = tile[g + i / 2 * 8], *other = tile[16 + 2 * t + i % 2];
        float sum = 0.0f;
        ROLLED for (int k = 0; k < SLICE; k++) sum += one[k] * other[k];
        sums[i] += sum;
    }
    WARP_BARRIER();
}

#endif

#if WEIGHTS == 8

// sums += left · rightᵀ, each times a scale: of rows g and g + 8 on the left, of rows 2t and 2t + 1 on the right.
DEVICE void multiply_bytes(float *sums, const Eight *low, const Eight *high, const Eight *right, const float *left_scales,
                           const float *right_scales) {
    int whole[4] = {0, 0, 0, 0};
    UNROLL for (int i = 0; i < 4; i += 2) {
        BYTE_PRODUCT(whole, low->pair[i], high->pair[i], low->pair[i + 1], high->pair[i + 1], right->pair[i], right->pair[i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) sums[i] = fmaf((float)whole[i], right_scales[i % 2] * left_scales[i / 2], sums[i]);
}

// The byte of a value, where `inverse` is one by the scale.
DEVICE signed char to_byte(float value, float inverse) { return (signed char)fminf(fmaxf(rintf(value * inverse), -127.0f), 127.0f); }

#endif
