// Runs kernels block by block on one CPU thread.
//
// A thread of a block is a fiber; it runs until it meets a barrier or a shuffle, or ends. The lanes of a warp must meet shuffles
// together, and all threads of a block barriers: where they do not, which on a GPU is undefined, the process ends and says so. So it does
// where a thread ends that did not wait for the kernel before, which the next relies on. Warps and
// lanes run forwards in one launch and backwards in the next, so that a missing barrier shows as a difference.

#include "emulator.h"
#include "fake.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#define MOST_THREADS 1024
#define STACK_BYTES (128 << 10)
#define MOST_KERNELS 64
#define MOST_COPIES 32

Index threadIdx, blockIdx, blockDim, gridDim;
float *emulated_shared;

enum State { READY, AT_SHUFFLE, AT_BARRIER, DONE };

typedef struct {
    // Where it goes on; jumps, unlike switches of contexts, are no system calls.
    jmp_buf place;
    int started;
    enum State state;
    unsigned shuffles;
    int has_waited;
    // Copies that are still to be made, and to which group each belongs.
    unsigned copies, groups;
    struct {
        void *to;
        const void *from;
        unsigned group;
    } copy[MOST_COPIES];
} Fiber;

static Fiber fibers[MOST_THREADS];
static char *stacks;
static float slots[2][MOST_THREADS];
static jmp_buf scheduler;
static unsigned current;
static const struct EmulatedKernel *running;
static const void *running_arguments;
static pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
static struct EmulatedKernel kernels[MOST_KERNELS];
static int kernel_count;
static int backwards;

static void fail(const char *what) {
    fprintf(stderr, "emulator: %s in %s\n", what, running->name);
    abort();
}

void emulator_register(int element, const char *name, Kernel kernel, size_t argument_bytes, unsigned most_threads) {
    const struct EmulatedKernel entry = {element, name, kernel, argument_bytes, most_threads};
    kernels[kernel_count++] = entry;
}

const struct EmulatedKernel *emulator_find(int element, const char *name) {
    for (int i = 0; i < kernel_count; i++) {
        if (kernels[i].element == element && strcmp(kernels[i].name, name) == 0) return &kernels[i];
    }
    return NULL;
}

static void pause_as(enum State state) {
    fibers[current].state = state;
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

void emulator_barrier(void) { pause_as(AT_BARRIER); }

float emulator_shuffle(float value, unsigned lane) {
    // Two sets of slots: whoever is ahead by one shuffle does not overwrite what others have still to read.
    const unsigned set = fibers[current].shuffles++ % 2, warp = current / 32 * 32;
    slots[set][current] = value;
    pause_as(AT_SHUFFLE);
    return slots[set][warp + lane % 32];
}

void emulator_copy_async(void *to, const void *from, int present) {
    Fiber *fiber = &fibers[current];
    if (fiber->copies == MOST_COPIES) fail("more copies at once than are kept");
    fiber->copy[fiber->copies].to = to;
    fiber->copy[fiber->copies].from = present ? from : NULL;
    fiber->copy[fiber->copies++].group = fiber->groups;
}

void emulator_commit_copies(void) { fibers[current].groups++; }

void emulator_wait_copies(unsigned groups) {
    Fiber *fiber = &fibers[current];
    unsigned left = 0;
    for (unsigned i = 0; i < fiber->copies; i++) {
        if (fiber->copy[i].group + groups >= fiber->groups) {
            fiber->copy[left++] = fiber->copy[i];
        } else if (fiber->copy[i].from) {
            memcpy(fiber->copy[i].to, fiber->copy[i].from, 16);
        } else {
            memset(fiber->copy[i].to, 0, 16);
        }
    }
    fiber->copies = left;
}

void emulator_after_previous(void) { fibers[current].has_waited = 1; }

// As the manual of PTX says which lane has which elements of mma.m16n8k16.
void emulator_tensor_product(float *sums, const unsigned *a, const unsigned *b, float (*widen)(unsigned short)) {
    static float left[MOST_THREADS / 32][16][16], right[MOST_THREADS / 32][16][8];
    const unsigned warp = current / 32, lane = current % 32, group = lane / 4, in_group = lane % 4;
    for (unsigned i = 0; i < 8; i++) {
        const unsigned row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
        const unsigned column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        left[warp][row][column] = widen((unsigned short)(a[i / 2] >> 16 * (i & 1)));
    }
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = in_group * 2 + (i & 1) + (i < 2 ? 0 : 8);
        right[warp][row][group] = widen((unsigned short)(b[i / 2] >> 16 * (i & 1)));
    }
    emulator_shuffle(0.0f, lane);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
        for (unsigned k = 0; k < 16; k++) sums[i] += left[warp][row][k] * right[warp][k][column];
    }
    emulator_shuffle(0.0f, lane);
}

// Likewise of mma.m16n8k32, where a word is four bytes.
void emulator_byte_product(int *sums, const unsigned *a, const unsigned *b) {
    static int left[MOST_THREADS / 32][16][32], right[MOST_THREADS / 32][32][8];
    const unsigned warp = current / 32, lane = current % 32, group = lane / 4, in_group = lane % 4;
    for (unsigned i = 0; i < 16; i++) {
        const unsigned row = i / 4 % 2 ? group + 8 : group, column = in_group * 4 + (i & 3) + (i < 8 ? 0 : 16);
        left[warp][row][column] = (signed char)(a[i / 4] >> 8 * (i & 3));
    }
    for (unsigned i = 0; i < 8; i++) {
        const unsigned row = in_group * 4 + (i & 3) + (i < 4 ? 0 : 16);
        right[warp][row][group] = (signed char)(b[i / 4] >> 8 * (i & 3));
    }
    emulator_shuffle(0.0f, lane);
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = i < 2 ? group : group + 8, column = in_group * 2 + (i & 1);
        for (unsigned k = 0; k < 32; k++) sums[i] += left[warp][row][k] * right[warp][k][column];
    }
    emulator_shuffle(0.0f, lane);
}

// A fiber is made once, and runs one block's thread after the other.
static void body(void) {
    for (;;) {
        running->kernel(running_arguments);
        if (!fibers[current].has_waited) fail("a thread that does not wait for the kernel before");
        pause_as(DONE);
    }
}

static void resume(unsigned thread) {
    Fiber *fiber = &fibers[thread];
    current = thread;
    threadIdx.x = thread;
    if (_setjmp(scheduler)) return;
    if (fiber->started) _longjmp(fiber->place, 1);
    fiber->started = 1;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + (size_t)thread * STACK_BYTES;
    context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&context, body, 0);
    setcontext(&context);
}

static void run_warp(unsigned first, unsigned count) {
    enum State state = fibers[first].state;
    while (state != AT_BARRIER && state != DONE) {
        for (unsigned i = 0; i < count; i++) {
            resume(first + (backwards ? count - 1 - i : i));
        }
        state = fibers[first].state;
        for (unsigned i = 0; i < count; i++) {
            if (fibers[first + i].state != state) fail("lanes of a warp part ways");
        }
    }
}

static void run_block(unsigned threads) {
    const unsigned warps = (threads + 31) / 32;
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].state = READY;
        fibers[i].shuffles = 0;
        fibers[i].has_waited = 0;
        fibers[i].copies = fibers[i].groups = 0;
    }
    for (;;) {
        for (unsigned w = 0; w < warps; w++) {
            const unsigned first = 32 * (backwards ? warps - 1 - w : w);
            run_warp(first, threads - first < 32 ? threads - first : 32);
        }
        const enum State state = fibers[0].state;
        for (unsigned i = 0; i < threads; i++) {
            if (fibers[i].state != state) fail("a barrier that not all threads reach");
        }
        if (state == DONE) return;
        for (unsigned i = 0; i < threads; i++) fibers[i].state = READY;
    }
}

void emulator_launch(const struct EmulatedKernel *kernel, const unsigned grid[3], unsigned threads, size_t shared_bytes, const void *arguments) {
    pthread_mutex_lock(&one_launch);
    if (!stacks) stacks = malloc((size_t)MOST_THREADS * STACK_BYTES);
    running = kernel;
    running_arguments = arguments;
    emulated_shared = aligned_alloc(32, (shared_bytes + 32) / 32 * 32);
    backwards = !backwards;
    const Index dimensions = {grid[0], grid[1], grid[2]}, block = {threads, 1, 1};
    gridDim = dimensions;
    blockDim = block;
    for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
            // Not a number, until it is written.
            memset(emulated_shared, 0xff, shared_bytes);
            run_block(threads);
        }
    }
    free(emulated_shared);
    pthread_mutex_unlock(&one_launch);
}
