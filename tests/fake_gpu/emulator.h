// The words of `worker/kernels/cuda/device.h`, so that its kernels run on a CPU: threads of a block are fibers that take turns, and
// go on together at barriers and shuffles (`emulator.c`).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    unsigned x, y, z;
} Index;

extern Index threadIdx, blockIdx, blockDim, gridDim;
extern float *emulated_shared;

typedef void (*Kernel)(const void *arguments);
void emulator_register(int element, const char *name, Kernel kernel, size_t argument_bytes, unsigned most_threads);
void emulator_barrier(void);
void emulator_after_previous(void);
void emulator_copy_async(void *to, const void *from, int present);
void emulator_commit_copies(void);
void emulator_wait_copies(unsigned groups);
float emulator_shuffle(float value, unsigned lane);
void emulator_byte_product(int *sums, const unsigned *a, const unsigned *b);
void emulator_tensor_product(float *sums, const unsigned *a, const unsigned *b, float (*widen)(unsigned short));

#define KERNELS_TOGETHER(name, threads, blocks, Arguments) KERNEL(name, threads, Arguments)
#define KERNEL(name, threads, Arguments)                                                    \
    static void name(const Arguments a);                                                    \
    static void name##_entry(const void *arguments) { name(*(const Arguments *)arguments); } \
    __attribute__((constructor)) static void name##_register(void) {                         \
        emulator_register(WEIGHTS, #name, name##_entry, sizeof(Arguments), threads);         \
    }                                                                                       \
    static void name(const Arguments a)
#define DEVICE static inline __attribute__((unused))
// One block runs at a time.
#define SHARED static
#define DYNAMIC_SHARED(name) float *name = emulated_shared
#define UNROLL
#define ROLLED
#define BARRIER() emulator_barrier()
#define WARP_BARRIER() ((void)emulator_shuffle(0.0f, threadIdx.x % 32))
#define ALIGNED(bytes) __attribute__((aligned(bytes)))
#define LOAD_ONCE(words, address, present)                   \
    do {                                                     \
        if (present) memcpy(words, address, 4 * sizeof *(words)); \
    } while (0)
#define COPY_ASYNC(to, from, present) emulator_copy_async(to, from, present)
#define COMMIT_COPIES() emulator_commit_copies()
#define WAIT_COPIES(count) emulator_wait_copies(count)
#define PREFETCH(address) ((void)(address))
#define BEGIN_NEXT() ((void)0)
#define AFTER_PREVIOUS() emulator_after_previous()
#define SHUFFLE(value, lane) emulator_shuffle(value, lane)
#ifdef BROKEN_SHUFFLE
// For the test that a fault is found.
#define SHUFFLE_XOR(value, mask) emulator_shuffle(value, ((threadIdx.x % 32) ^ (mask)) & ~1u)
#else
#define SHUFFLE_XOR(value, mask) emulator_shuffle(value, (threadIdx.x % 32) ^ (mask))
#endif
#define FENCE() ((void)0)
#define LOAD_FRESH(address) (*(address))
#define ATOMIC_ADD(address, value) emulated_add(address, value)
#define BYTE_PRODUCT(sums, a0, a1, a2, a3, b0, b1)                 \
    do {                                                           \
        const unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};   \
        emulator_byte_product(sums, a, b);                         \
    } while (0)
#define TENSOR_PRODUCT(sums, a0, a1, a2, a3, b0, b1)               \
    do {                                                           \
        const unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};   \
        emulator_tensor_product(sums, a, b, widen);                \
    } while (0)

static inline __attribute__((unused)) unsigned emulated_add(unsigned *address, unsigned value) {
    const unsigned before = *address;
    *address += value;
    return before;
}

static inline __attribute__((unused)) unsigned FLOAT_BITS(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline __attribute__((unused)) float FLOAT_OF(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Between float and IEEE half precision, to nearest even.
static inline __attribute__((unused)) float emulated_from_f16(unsigned short half) {
    const unsigned exponent = half >> 10 & 31, fraction = half & 1023, sign = (unsigned)(half >> 15) << 31;
    if (exponent == 31) return FLOAT_OF(sign | 0x7f800000u | fraction << 13);
    const float magnitude = exponent ? ldexpf((float)(fraction | 1024), (int)exponent - 25) : ldexpf((float)fraction, -24);
    return sign ? -magnitude : magnitude;
}

static inline __attribute__((unused)) unsigned short emulated_to_f16(float value) {
    const unsigned short sign = (unsigned short)(FLOAT_BITS(value) >> 16 & 0x8000u);
    const float magnitude = fabsf(value);
    if (isnan(value)) return sign | 0x7e00u;
    if (magnitude >= 65520.0f) return sign | 0x7c00u;
    int exponent;
    frexpf(magnitude, &exponent);
    // Subnormal halves have the spacing of the smallest normal ones. `rintf` rounds ties to even.
    const int subnormal = magnitude == 0.0f || exponent < -13, shift = subnormal ? 24 : 11 - exponent;
    const unsigned steps = (unsigned)rintf(ldexpf(magnitude, shift));
    return sign | (unsigned short)(subnormal ? steps : ((unsigned)(exponent + 13) << 10) + steps);
}
