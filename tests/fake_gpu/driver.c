// libcuda.so.1 for tests: memory is the host's, work is done as it is queued, kernels run in the emulator, captured work is kept and
// repeated. Every call that queues or captures is logged. It is as strict as it can be: memory is not a number until it is written,
// copies must lie inside an allocation, and nothing may be allocated or copied during a capture.

#define _GNU_SOURCE
#include "fake.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

typedef int Status;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500, NOT_READY = 600, CAPTURING = 900 };

// Of shared memory that a block may have, and of which a kernel takes no more than it was promised.
enum { SHARED_BYTES = 99 << 10, DECLARED_BYTES = 33 << 10 };

typedef struct Node {
    struct Node *next;
    void (*work)(void *);
    char what[64];
    size_t size;
    // Not an array of char: it holds structs.
    uint64_t data[];
} Node;

typedef struct {
    Node *first, **last;
    int nodes;
} Graph;

typedef struct {
    Graph *capture;
} Stream;

typedef struct {
    int polls;
} Event;

typedef struct Allocation {
    struct Allocation *next;
    char *address;
    size_t bytes;
    int device;
} Allocation;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation *allocations;
static size_t used[16];
static int live_graphs;
static int contexts[16];
static __thread int *current_context;
static __thread int captures;

long fake_setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

void fake_log(const char *format, ...) {
    const char *path = getenv("FAKE_GPU_LOG");
    if (!path) return;
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    line[length++] = '\n';
    const int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
    if (file >= 0) {
        if (write(file, line, (size_t)length) < 0) abort();
        close(file);
    }
}

static size_t memory_of_device(void) { return (size_t)fake_setting("FAKE_GPU_MEMORY", 1L << 30); }

__attribute__((destructor)) static void at_exit(void) {
    int count = 0;
    for (Allocation *a = allocations; a; a = a->next) count++;
    fake_log("exit: %d allocations, %d graphs", count, live_graphs);
}

int fake_is_device_memory(const void *address, size_t bytes) {
    pthread_mutex_lock(&lock);
    int inside = 0;
    for (Allocation *a = allocations; a; a = a->next) {
        inside |= a->address <= (const char *)address && (const char *)address + bytes <= a->address + a->bytes;
    }
    pthread_mutex_unlock(&lock);
    return inside;
}

void fake_enqueue(void *stream, void (*work)(void *), const void *data, size_t size, const char *what) {
    Node *node = malloc(sizeof *node + size);
    node->next = NULL;
    node->work = work;
    node->size = size;
    snprintf(node->what, sizeof node->what, "%s", what);
    memcpy(node->data, data, size);
    Graph *capture = ((Stream *)stream)->capture;
    if (capture) {
        *capture->last = node;
        capture->last = &node->next;
        capture->nodes++;
        return;
    }
    fake_log("%s", what);
    work(node->data);
    free(node);
}

Status cuInit(unsigned flags) {
    (void)flags;
    return fake_setting("FAKE_GPU_DEVICES", 1) ? OK : NO_DEVICE;
}

Status cuDriverGetVersion(int *version) {
    *version = (int)fake_setting("FAKE_GPU_DRIVER", 12080);
    return OK;
}

Status cuGetErrorString(Status status, const char **text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == CAPTURING ? "not while capturing" : "refused by the fake driver";
    return OK;
}

Status cuDeviceGetCount(int *count) {
    *count = (int)fake_setting("FAKE_GPU_DEVICES", 1);
    return OK;
}

Status cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < fake_setting("FAKE_GPU_DEVICES", 1) ? OK : INVALID_DEVICE;
}

Status cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, (size_t)length, "Emulated GPU %d", device);
    return OK;
}

Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    const int capability = (int)fake_setting("FAKE_GPU_CAPABILITY", 90);
    switch (attribute) {
    case 16: *value = 4; break;
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 97: *value = SHARED_BYTES; break;
    default: *value = 0;
    }
    return OK;
}

Status cuDevicePrimaryCtxRetain(int **context, int device) {
    contexts[device] = device;
    *context = &contexts[device];
    return OK;
}

Status cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return OK;
}

Status cuCtxGetCurrent(int **context) {
    *context = current_context;
    return OK;
}

Status cuCtxSetCurrent(int *context) {
    current_context = context;
    return OK;
}

Status cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *total = memory_of_device();
    *free_bytes = *total - used[*current_context];
    return OK;
}

Status cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (captures) return CAPTURING;
    if (!bytes) return INVALID;
    Allocation *allocation = malloc(sizeof *allocation);
    pthread_mutex_lock(&lock);
    const int device = *current_context;
    if (used[device] + bytes > memory_of_device()) {
        pthread_mutex_unlock(&lock);
        free(allocation);
        return OUT_OF_MEMORY;
    }
    used[device] += bytes;
    allocation->address = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(allocation->address, 0xff, bytes);
    allocation->bytes = bytes;
    allocation->device = device;
    allocation->next = allocations;
    allocations = allocation;
    pthread_mutex_unlock(&lock);
    *address = (uint64_t)allocation->address;
    return OK;
}

Status cuMemFree_v2(uint64_t address) {
    Status status = INVALID;
    pthread_mutex_lock(&lock);
    for (Allocation **at = &allocations; *at; at = &(*at)->next) {
        if ((uint64_t)(*at)->address == address) {
            Allocation *gone = *at;
            *at = gone->next;
            used[gone->device] -= gone->bytes;
            free(gone->address);
            free(gone);
            status = OK;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return status;
}

Status cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    *address = malloc(bytes);
    return captures ? CAPTURING : OK;
}

Status cuMemFreeHost(void *address) {
    free(address);
    return OK;
}

Status cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream) {
    if (stream->capture) return CAPTURING;
    if (!fake_is_device_memory((void *)to, bytes)) return INVALID;
    fake_log("copy up %zu", bytes);
    memcpy((void *)to, from, bytes);
    return OK;
}

Status cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream) {
    if (stream->capture) return CAPTURING;
    if (!fake_is_device_memory((void *)from, bytes)) return INVALID;
    fake_log("copy down %zu", bytes);
    memcpy(to, (void *)from, bytes);
    return OK;
}

typedef struct {
    void *to;
    int value;
    size_t bytes;
} Fill;

static void fill(void *data) {
    const Fill *job = data;
    memset(job->to, job->value, job->bytes);
}

Status cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream *stream) {
    if (!fake_is_device_memory((void *)to, bytes)) return INVALID;
    const Fill job = {(void *)to, value, bytes};
    fake_enqueue(stream, fill, &job, sizeof job, "clear");
    return OK;
}

// A module is the element type that the first line of its PTX names.
Status cuModuleLoadData(int **module, const char *ptx) {
    static int elements[3] = {32, 16, 19};
    static const char *names[3] = {"// f32,", "// f16,", "// bf16,"};
    for (int i = 0; i < 3; i++) {
        if (strncmp(ptx, names[i], strlen(names[i])) == 0) {
            *module = &elements[i];
            return strstr(ptx, ".version 8.4\n") ? OK : INVALID_IMAGE;
        }
    }
    return INVALID_IMAGE;
}

Status cuModuleUnload(int *module) {
    (void)module;
    return OK;
}

Status cuModuleGetFunction(const struct EmulatedKernel **function, const int *module, const char *name) {
    *function = emulator_find(*module, name);
    return *function ? OK : NOT_FOUND;
}

Status cuFuncGetAttribute(int *value, int attribute, const struct EmulatedKernel *kernel) {
    (void)kernel;
    *value = DECLARED_BYTES;
    return attribute == 1 ? OK : INVALID;
}

Status cuFuncSetAttribute(const struct EmulatedKernel *kernel, int attribute, int value) {
    (void)kernel;
    return attribute == 8 && value <= SHARED_BYTES - DECLARED_BYTES ? OK : INVALID;
}

typedef struct {
    const struct EmulatedKernel *kernel;
    unsigned grid[3], threads;
    size_t shared_bytes;
    uint64_t arguments[32];
} Launch;

static void launch(void *data) {
    const Launch *job = data;
    emulator_launch(job->kernel, job->grid, job->threads, job->shared_bytes, job->arguments);
}

Status cuLaunchKernel(const struct EmulatedKernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned shared_bytes, Stream *stream, void **parameters, void **extra) {
    Launch job = {kernel, {gx, gy, gz}, bx, shared_bytes, {0}};
    const int sizes = gx && gy && gz == 1 && bx && bx <= kernel->most_threads && by == 1 && bz == 1 && shared_bytes <= SHARED_BYTES - DECLARED_BYTES;
    if (!sizes || extra || kernel->argument_bytes > sizeof job.arguments) return INVALID;
    memcpy(job.arguments, parameters[0], kernel->argument_bytes);
    char what[64];
    snprintf(what, sizeof what, "launch %s %u x %u", kernel->name, gx, gy);
    fake_enqueue(stream, launch, &job, sizeof job, what);
    return OK;
}

Status cuStreamCreate(Stream **stream, unsigned flags) {
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    return OK;
}

Status cuStreamDestroy_v2(Stream *stream) {
    free(stream);
    return OK;
}

Status cuStreamBeginCapture_v2(Stream *stream, int mode) {
    (void)mode;
    if (stream->capture) return INVALID;
    stream->capture = calloc(1, sizeof *stream->capture);
    stream->capture->last = &stream->capture->first;
    captures++;
    return OK;
}

Status cuStreamEndCapture(Stream *stream, Graph **graph) {
    *graph = stream->capture;
    stream->capture = NULL;
    captures--;
    live_graphs++;
    fake_log("captured %d", (*graph)->nodes);
    return OK;
}

Status cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    (void)flags;
    *executable = graph;
    return OK;
}

Status cuGraphLaunch(Graph *graph, Stream *stream) {
    if (stream->capture) return CAPTURING;
    fake_log("graph of %d", graph->nodes);
    for (Node *node = graph->first; node; node = node->next) {
        // Work may not change what it was given: a GPU's graph does not.
        uint64_t *data = malloc(node->size);
        memcpy(data, node->data, node->size);
        node->work(data);
        free(data);
    }
    return OK;
}

Status cuGraphExecDestroy(Graph *graph) {
    (void)graph;
    return OK;
}

Status cuGraphDestroy(Graph *graph) {
    for (Node *node = graph->first; node;) {
        Node *next = node->next;
        free(node);
        node = next;
    }
    free(graph);
    live_graphs--;
    return OK;
}

Status cuEventCreate(Event **event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    return OK;
}

Status cuEventDestroy_v2(Event *event) {
    free(event);
    return OK;
}

Status cuEventRecord(Event *event, Stream *stream) {
    event->polls = 2;
    return stream->capture ? CAPTURING : OK;
}

Status cuEventQuery(Event *event) { return event->polls && event->polls-- ? NOT_READY : OK; }
