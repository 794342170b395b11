// libcuda.so.1 for tests: memory is the host's, kernels run in the emulator, captured work is kept and repeated. Work is done when
// somebody asks whether it is done, or frees memory. Every call that queues or captures is logged. It is as strict as it can be: memory
// is not a number until it is written, and what is copied down not before it is waited for; copies must lie inside an allocation;
// calls need a context; what must not be called during a capture spoils it.
// FAKE_GPU_FAULT is how the log's line of some work begins: when the GPU FAULTY_GPU comes to it, it fails for good.

#define _GNU_SOURCE
#include "fake.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

typedef int Status;
enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, STUB = 34, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NO_CONTEXT = 201, NO_COMPILER = 221, NOT_FOUND = 500, NOT_READY = 600, FAULT = 700, CAPTURING = 900, SPOILT = 901 };
// The last place is the host, for pinned memory.
enum { MOST_DEVICES = 16, HOST = MOST_DEVICES };

// Of shared memory that a block may have.
enum { SHARED_BYTES = 99 << 10 };

typedef struct Node {
    struct Node *next;
    void (*work)(void *);
    // Counts the graphs' nodes that hold something.
    atomic_int *holders;
    size_t size;
    // Not an array of char: it holds structs.
    uint64_t data[];
} Node;

typedef struct {
    Node *first, **last;
    int nodes;
} Graph;

typedef struct Stream {
    struct Stream *next;
    int device, is_spoilt;
    // Whether what was queued last is a kernel.
    int follows_kernel;
    Graph *capture;
    pthread_mutex_t lock;
    Graph queue;
} Stream;

typedef struct {
    int polls;
    Stream *stream;
} Event;

typedef struct Allocation {
    struct Allocation *next;
    char *address;
    size_t bytes;
    int device;
} Allocation;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Allocation *allocations;
static Stream *streams;
static size_t used[MOST_DEVICES + 1];
static int live_graphs;
static int contexts[MOST_DEVICES], holders[MOST_DEVICES], is_faulty[MOST_DEVICES];
static __thread int *current_context;
static __thread Stream *capturing;

#define TRY(call) do { const Status refusal = call; if (refusal) return refusal; } while (0)

// Whether a call would be refused whatever it asks for.
static Status ready(void) {
    if (!current_context || !holders[*current_context]) return NO_CONTEXT;
    return is_faulty[*current_context] ? FAULT : OK;
}

// The same of a call that must not come during a capture.
static Status ready_outside_captures(void) {
    if (!capturing) return ready();
    capturing->is_spoilt = 1;
    return CAPTURING;
}

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

static size_t memory_of_device(void) { return (size_t)fake_setting("FAKE_GPU_MEMORY", 4L << 30); }

__attribute__((destructor)) static void at_exit(void) {
    int count = 0;
    for (Allocation *a = allocations; a; a = a->next) count++;
    fake_log("exit: %d allocations, %d graphs", count, live_graphs);
}

static int is_allocated(const void *address, size_t bytes, int is_host) {
    pthread_mutex_lock(&lock);
    int inside = 0;
    for (Allocation *a = allocations; a; a = a->next) {
        inside |= (a->device == HOST) == is_host && a->address <= (const char *)address && (const char *)address + bytes <= a->address + a->bytes;
    }
    pthread_mutex_unlock(&lock);
    return inside;
}

int fake_is_device_memory(const void *address, size_t bytes) { return is_allocated(address, bytes, 0); }

static void append(Graph *to, void (*work)(void *), const void *data, size_t size) {
    Node *node = malloc(sizeof *node + size);
    node->next = NULL;
    node->work = work;
    node->holders = NULL;
    node->size = size;
    memcpy(node->data, data, size);
    if (!to->first) to->last = &to->first;
    *to->last = node;
    to->last = &node->next;
    to->nodes++;
}

static void run(const Graph *graph) {
    for (Node *node = graph->first; node; node = node->next) {
        // Work may not change what it was given: a GPU's graph does not.
        uint64_t *data = malloc(node->size);
        memcpy(data, node->data, node->size);
        node->work(data);
        free(data);
    }
}

static void clear(Graph *graph) {
    for (Node *node = graph->first; node;) {
        Node *next = node->next;
        if (node->holders) atomic_fetch_sub(node->holders, 1);
        free(node);
        node = next;
    }
    const Graph empty = {0};
    *graph = empty;
}

// Does what is queued.
static void finish(Stream *stream) {
    pthread_mutex_lock(&stream->lock);
    run(&stream->queue);
    clear(&stream->queue);
    pthread_mutex_unlock(&stream->lock);
}

static void finish_all(void) {
    for (Stream *stream = streams; stream; stream = stream->next) {
        if (stream->device == *current_context) finish(stream);
    }
}

static void fail(void *device) { is_faulty[*(int *)device] = 1; }

static void launch(void *data);

int fake_enqueue(void *to, void (*work)(void *), const void *data, size_t size, const char *what) {
    TRY(ready());
    Stream *stream = to;
    if (stream->is_spoilt) return SPOILT;
    stream->follows_kernel = work == launch;
    if (stream->capture) {
        append(stream->capture, work, data, size);
        return OK;
    }
    fake_log("%s", what);
    const char *fault = getenv("FAKE_GPU_FAULT");
    if (fault && strncmp(what, fault, strlen(fault)) == 0 && stream->device == fake_setting("FAULTY_GPU", 0)) {
        work = fail;
        data = &stream->device;
        size = sizeof stream->device;
    }
    pthread_mutex_lock(&stream->lock);
    append(&stream->queue, work, data, size);
    pthread_mutex_unlock(&stream->lock);
    return OK;
}

void fake_hold(void *of, atomic_int *count) {
    Stream *stream = of;
    if (!stream->capture) return;
    Node *node = stream->capture->first;
    while (node->next) node = node->next;
    node->holders = count;
    atomic_fetch_add(count, 1);
}

Status cuInit(unsigned flags) {
    (void)flags;
    if (fake_setting("FAKE_GPU_STUB", 0)) return STUB;
    return fake_setting("FAKE_GPU_DEVICES", 1) ? OK : NO_DEVICE;
}

Status cuDriverGetVersion(int *version) {
    *version = (int)fake_setting("FAKE_GPU_DRIVER", 12080);
    return fake_setting("FAKE_GPU_STUB", 0) ? STUB : OK;
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
    if (device == fake_setting("FULL_GPU", -1)) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    if (!holders[device]++) fake_log("context %d", device);
    pthread_mutex_unlock(&lock);
    contexts[device] = device;
    *context = &contexts[device];
    return OK;
}

Status cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    holders[device]--;
    pthread_mutex_unlock(&lock);
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
    TRY(ready());
    *total = memory_of_device();
    *free_bytes = *total - used[*current_context];
    return OK;
}

static Status allocate(int device, char **address, size_t bytes) {
    TRY(ready_outside_captures());
    if (!bytes) return INVALID;
    Allocation *allocation = malloc(sizeof *allocation);
    pthread_mutex_lock(&lock);
    if (device != HOST && used[device] + bytes > memory_of_device()) {
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
    *address = allocation->address;
    return OK;
}

static Status release(const char *address) {
    TRY(ready_outside_captures());
    finish_all();
    Status status = INVALID;
    pthread_mutex_lock(&lock);
    for (Allocation **at = &allocations; *at; at = &(*at)->next) {
        if ((*at)->address == address) {
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

Status cuMemAlloc_v2(char **address, size_t bytes) {
    TRY(ready());
    return allocate(*current_context, address, bytes);
}

Status cuMemFree_v2(const char *address) { return release(address); }

Status cuMemHostAlloc(char **address, size_t bytes, unsigned flags) {
    (void)flags;
    return allocate(HOST, address, bytes);
}

Status cuMemFreeHost(const char *address) { return release(address); }

typedef struct {
    void *to;
    const void *from;
    size_t bytes;
} Copy;

static void copy(void *data) {
    const Copy *job = data;
    memcpy(job->to, job->from, job->bytes);
}

static int will_be_read(const Stream *stream, const void *from) {
    for (const Node *node = stream->queue.first; node; node = node->next) {
        if (node->work == copy && ((const Copy *)node->data)->from == from) return 1;
    }
    return 0;
}

// The host changes what it copies, so that a captured copy would bring other bytes than were meant.
static Status enqueue_copy(Stream *stream, void *to, const void *from, size_t bytes, const char *way) {
    TRY(ready_outside_captures());
    const Copy job = {to, from, bytes};
    char what[64];
    snprintf(what, sizeof what, "copy %s %zu", way, bytes);
    return fake_enqueue(stream, copy, &job, sizeof job, what);
}

Status cuMemcpyHtoDAsync_v2(char *to, const void *from, size_t bytes, Stream *stream) {
    if (!is_allocated(to, bytes, 0) || !is_allocated(from, bytes, 1)) return INVALID;
    return enqueue_copy(stream, to, from, bytes, "up");
}

Status cuMemcpyDtoHAsync_v2(void *to, const char *from, size_t bytes, Stream *stream) {
    if (!is_allocated(from, bytes, 0) || !is_allocated(to, bytes, 1)) return INVALID;
    // Nobody may read it before it has come, but what was queued before.
    if (!will_be_read(stream, to)) memset(to, 0xff, bytes);
    return enqueue_copy(stream, to, from, bytes, "down");
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
    return fake_enqueue(stream, fill, &job, sizeof job, "clear");
}

// A module is the element type that the first line of its PTX names.
Status cuModuleLoadDataEx(int **module, const char *ptx, unsigned count, const int *options, void **values) {
    TRY(ready_outside_captures());
    if (fake_setting("FAKE_GPU_NO_COMPILER", 0)) return NO_COMPILER;
    // The buffer for errors, and its size.
    if (count != 2 || options[0] != 5 || options[1] != 6) return INVALID;
    if (fake_setting("FAKE_GPU_OLD_COMPILER", 0)) {
        snprintf(values[0], (size_t)values[1], "ptxas fatal : Unsupported .version 8.0");
        return INVALID_IMAGE;
    }
    static int elements[4] = {32, 16, 19, 8};
    static const char *names[4] = {"// f32,", "// f16,", "// bf16,", "// int8,"};
    for (int i = 0; i < 4; i++) {
        if (strncmp(ptx, names[i], strlen(names[i])) == 0) {
            *module = &elements[i];
            const int is_for_it = strstr(ptx, ".target sm_80\n") || (strstr(ptx, ".target sm_90\n") && fake_setting("FAKE_GPU_CAPABILITY", 90) >= 90);
            return is_for_it && strstr(ptx, ".version 8.0\n") ? OK : INVALID_IMAGE;
        }
    }
    return INVALID_IMAGE;
}

Status cuModuleUnload(int *module) {
    (void)module;
    return ready_outside_captures();
}

Status cuModuleGetFunction(const struct EmulatedKernel **function, const int *module, const char *name) {
    *function = emulator_find(*module, name);
    return *function ? OK : NOT_FOUND;
}

// What a kernel declares itself, in f32 and rounded up, as the assembler tells it.
static int declared(const struct EmulatedKernel *kernel) {
    return strncmp(kernel->name, "attend", 6) == 0 || strcmp(kernel->name, "project_many") == 0 ? 28 << 10 : 36 << 10;
}

Status cuFuncGetAttribute(int *value, int attribute, const struct EmulatedKernel *kernel) {
    *value = declared(kernel);
    return attribute == 1 ? OK : INVALID;
}

Status cuFuncSetAttribute(const struct EmulatedKernel *kernel, int attribute, int value) {
    return attribute == 8 && value <= SHARED_BYTES - declared(kernel) ? OK : INVALID;
}

// Of the smaller cards, whose multiprocessors have no more shared memory than a block.
Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const struct EmulatedKernel *kernel, int threads, size_t shared_bytes) {
    *blocks = (int)shared_bytes + declared(kernel) <= SHARED_BYTES / 2 ? 2 : 1;
    return threads > 0 && (unsigned)threads <= kernel->most_threads ? ready() : INVALID;
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

typedef struct {
    int id;
    char padding[4];
    union {
        char bytes[64];
        int allowed;
    } value;
} Attribute;

typedef struct {
    unsigned grid[3], threads[3], shared_bytes;
    Stream *stream;
    const Attribute *attributes;
    unsigned attribute_count;
} Configuration;

// A kernel may overlap with one before only, and where the GPU can do that.
static int is_overlap(const Configuration *as) {
    const Attribute *first = as->attributes;
    return as->attribute_count == 1 && first->id == 6 && first->value.allowed && as->stream->follows_kernel && fake_setting("FAKE_GPU_CAPABILITY", 90) >= 90;
}

Status cuLaunchKernelEx(const Configuration *as, const struct EmulatedKernel *kernel, void **parameters, void **extra) {
    const unsigned *grid = as->grid, *threads = as->threads;
    Launch job = {kernel, {grid[0], grid[1], grid[2]}, threads[0], as->shared_bytes, {0}};
    const int is_grid = grid[0] && grid[1] && grid[2] == 1 && threads[1] == 1 && threads[2] == 1;
    const int is_block = threads[0] && threads[0] <= kernel->most_threads && (int)as->shared_bytes <= SHARED_BYTES - declared(kernel);
    if (!is_grid || !is_block || extra || kernel->argument_bytes > sizeof job.arguments) return INVALID;
    if (as->attribute_count && !is_overlap(as)) return INVALID;
    memcpy(job.arguments, parameters[0], kernel->argument_bytes);
    char what[64];
    snprintf(what, sizeof what, "launch %s %u x %u%s", kernel->name, grid[0], grid[1], as->attribute_count ? ", overlapping" : "");
    return fake_enqueue(as->stream, launch, &job, sizeof job, what);
}

Status cuStreamCreate(Stream **stream, unsigned flags) {
    (void)flags;
    TRY(ready());
    Stream *made = calloc(1, sizeof *made);
    made->device = *current_context;
    pthread_mutex_init(&made->lock, NULL);
    pthread_mutex_lock(&lock);
    made->next = streams;
    streams = made;
    pthread_mutex_unlock(&lock);
    *stream = made;
    return OK;
}

// It stays in the list, empty.
Status cuStreamDestroy_v2(Stream *stream) {
    TRY(ready());
    finish(stream);
    return OK;
}

Status cuStreamBeginCapture_v2(Stream *stream, int mode) {
    (void)mode;
    TRY(ready());
    if (capturing || stream->capture) return INVALID;
    stream->capture = calloc(1, sizeof *stream->capture);
    capturing = stream;
    return OK;
}

Status cuGraphDestroy(Graph *graph) {
    TRY(ready());
    // One that is queued lives until it has run.
    finish_all();
    clear(graph);
    free(graph);
    live_graphs--;
    return OK;
}

Status cuStreamEndCapture(Stream *stream, Graph **graph) {
    Graph *made = stream->capture;
    const int is_spoilt = stream->is_spoilt;
    stream->capture = NULL;
    stream->is_spoilt = 0;
    capturing = NULL;
    live_graphs++;
    *graph = NULL;
    if (is_spoilt) {
        TRY(cuGraphDestroy(made));
        return SPOILT;
    }
    fake_log("captured %d", made->nodes);
    *graph = made;
    return ready();
}

Status cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
    (void)flags;
    *executable = graph;
    return ready_outside_captures();
}

static void run_graph(void *data) { run(*(Graph **)data); }

Status cuGraphLaunch(Graph *graph, Stream *stream) {
    TRY(ready_outside_captures());
    char what[64];
    snprintf(what, sizeof what, "graph of %d", graph->nodes);
    return fake_enqueue(stream, run_graph, &graph, sizeof graph, what);
}

Status cuGraphExecDestroy(Graph *graph) {
    (void)graph;
    return ready();
}

Status cuEventCreate(Event **event, unsigned flags) {
    (void)flags;
    TRY(ready());
    *event = calloc(1, sizeof **event);
    return OK;
}

Status cuEventDestroy_v2(Event *event) {
    free(event);
    return OK;
}

Status cuEventRecord(Event *event, Stream *stream) {
    TRY(ready_outside_captures());
    event->polls = 2;
    event->stream = stream;
    return OK;
}

Status cuEventQuery(Event *event) {
    TRY(ready_outside_captures());
    if (event->polls && event->polls--) return NOT_READY;
    finish(event->stream);
    return ready();
}
