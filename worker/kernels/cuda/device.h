// What a kernel is written with: CUDA where it is compiled for a GPU, else whatever `emulator.h` makes of the same words, so that
// tests run the very same sources on a CPU. Hence the common subset of C and CUDA C++: no templates, constants as arguments of
// inlined functions instead.
#ifdef __CUDACC__

// One struct is all a kernel takes: the host passes the same bytes (`src/cuda.rs`).
#define KERNEL(name, threads, Arguments) KERNELS_TOGETHER(name, threads, 1, Arguments)
// So many blocks of it are to have room on a multiprocessor, which is also what the compiler may spend registers for.
#define KERNELS_TOGETHER(name, threads, blocks, Arguments) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Arguments a)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(32) float name[]
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#define BARRIER() __syncthreads()
#define SHUFFLE(value, lane) __shfl_sync(0xffffffffu, value, lane)
#define SHUFFLE_XOR(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define WARP_BARRIER() __syncwarp()
#define ATOMIC_ADD(address, value) atomicAdd(address, value)
// What a thread wrote can be seen by whoever learns of it after this; a float that another block may have written meanwhile.
#define FENCE() __threadfence()
#define LOAD_FRESH(address) __ldcg(address)
#define ALIGNED(bytes) __align__(bytes)
// Four words at an address that nobody writes to while the kernel runs, and that is read once: past the first-level cache, which what is
// read again needs. As they were where `present` is 0.
#define LOAD_ONCE(words, address, present)                                                          \
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0;"                                            \
                 " @p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"                \
                 : "+r"((words)[0]), "+r"((words)[1]), "+r"((words)[2]), "+r"((words)[3])           \
                 : "l"(address), "r"(present))
// Sixteen bytes to shared memory, zeros where `present` is 0: they are there for the thread once it has waited for all but the last
// `count` of the groups that it closed, a constant.
#define COPY_ASYNC(to, from, present)                                                               \
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"                                    \
                 : : "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"((present) ? 16 : 0) : "memory")
#define COMMIT_COPIES() asm volatile("cp.async.commit_group;" : : : "memory")
#define WAIT_COPIES(count) asm volatile("cp.async.wait_group %0;" : : "n"(count) : "memory")
// Brings memory near that will be read soon.
#define PREFETCH(address) asm volatile("prefetch.global.L2 [%0];" : : "l"(address))
// From compute capability 9.0 on a kernel may begin while the one before it ends: BEGIN_NEXT says that this one's blocks all run, and
// AFTER_PREVIOUS waits until all before it is done and can be seen. Until then a kernel reads nothing but weights and what was copied
// before the step, and every thread of every kernel waits, as whoever comes next relies on it. Elsewhere both are comments (`ptx` in `src/cuda.rs`).
#define BEGIN_NEXT() asm volatile("//overlap griddepcontrol.launch_dependents;" : : : "memory")
#define AFTER_PREVIOUS() asm volatile("//overlap griddepcontrol.wait;" : : : "memory")
#define FLOAT_BITS(value) __float_as_uint(value)
#define FLOAT_OF(bits) __uint_as_float(bits)

// 16 × 8 sums += 16 × 16 · 16 × 8 of a warp, whose lanes have parts as the manual of PTX lays them out (mma.m16n8k16).
// The same of bytes: 16 × 8 whole numbers += 16 × 32 · 32 × 8 (mma.m16n8k32).
#define BYTE_PRODUCT(sums, a0, a1, a2, a3, b0, b1)                                                               \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+r"((sums)[0]), "+r"((sums)[1]), "+r"((sums)[2]), "+r"((sums)[3])                                     \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
#if ELEMENT == 16
#define TENSOR_INSTRUCTION "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#else
#define TENSOR_INSTRUCTION "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#endif
#define TENSOR_PRODUCT(sums, a0, a1, a2, a3, b0, b1)                                                   \
    asm volatile(TENSOR_INSTRUCTION " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"           \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                    \
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))

#else
#include "emulator.h"
#endif

#define MINUS_INFINITY FLOAT_OF(0xff800000u)

// The element of weights, of what is multiplied with them, and of the KV cache: ELEMENT is 32 (f32), 16 (f16) or 19 (bf16). Where WEIGHTS
// is 8, weights and what is multiplied with them are bytes instead.
#if ELEMENT == 32
typedef float element;
DEVICE float widen(element x) { return x; }
DEVICE element narrow(float x) { return x; }
#elif ELEMENT == 16
typedef unsigned short element;
#ifdef __CUDACC__
DEVICE float widen(element x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
DEVICE element narrow(float x) {
    element y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
DEVICE float widen(element x) { return emulated_from_f16(x); }
DEVICE element narrow(float x) { return emulated_to_f16(x); }
#endif
#elif ELEMENT == 19
typedef unsigned short element;
DEVICE float widen(element x) { return FLOAT_OF((unsigned)x << 16); }
#ifdef __CUDACC__
DEVICE element narrow(float x) {
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(x));
    return (element)pair;
}
#else
// To nearest, ties to even; a NaN stays one.
DEVICE element narrow(float x) {
    const unsigned bits = FLOAT_BITS(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (element)(bits >> 16 | 0x40u);
    return (element)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
#endif
#else
#error "ELEMENT is 32, 16 or 19"
#endif

// `carried` is what products take from the kernels before them: bytes are made of f32 where they are multiplied.
#if WEIGHTS == 8
typedef signed char weight;
typedef float carried;
DEVICE carried carry(float x) { return x; }
#else
typedef element weight;
typedef element carried;
DEVICE carried carry(float x) { return narrow(x); }
#endif

DEVICE float from_bf16(unsigned short bits) { return FLOAT_OF((unsigned)bits << 16); }

// To nearest, ties to even.
DEVICE float rounded_to_bf16(float x) {
    const unsigned bits = FLOAT_BITS(x);
    return FLOAT_OF((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
}

// What kernels begin with that have nothing to do before.
#define IN_TURN() \
    do {           \
        BEGIN_NEXT(); \
        AFTER_PREVIOUS(); \
    } while (0)

// The sum and the largest of a warp's values, the same in each lane.
DEVICE float warp_sum(float value) {
    UNROLL for (int mask = 16; mask; mask /= 2) value += SHUFFLE_XOR(value, mask);
    return value;
}

DEVICE float warp_max(float value) {
    UNROLL for (int mask = 16; mask; mask /= 2) value = fmaxf(value, SHUFFLE_XOR(value, mask));
    return value;
}

// Another lane's word; shuffles are of floats.
DEVICE unsigned word_of_lane(unsigned word, unsigned lane) { return FLOAT_BITS(SHUFFLE(FLOAT_OF(word), lane)); }
