// libnccl.so.2 for tests: ranks are processes or threads of one host, which meet in a file that the id names. Like the real one it
// has a thread of its own once there is an id, waits for all ranks when one joins, and ends a communicator only when no graph holds it;
// nobody hears of the end of a peer.

#define _GNU_SOURCE
#include "fake.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SUCCESS = 0, UNHANDLED_CUDA = 1, INVALID = 4, FLOAT32 = 7, SUM = 0, MOST_RANKS = 8, CHUNK = 1 << 16 };

typedef struct {
    char path[128];
} Id;

typedef struct {
    atomic_int joined, arrived, round;
    float parts[MOST_RANKS][CHUNK];
} Meeting;

typedef struct {
    Meeting *meeting;
    int rank, world;
    atomic_int aborted, graphs;
} Communicator;

int cuDriverGetVersion(int *version);

int ncclGetVersion(int *version) {
    *version = 22809;
    return SUCCESS;
}

static int is_too_new(void) {
    int driver = 0;
    return cuDriverGetVersion(&driver) || fake_setting("FAKE_NCCL_CUDA", 12080) / 1000 > driver / 1000;
}

const char *ncclGetErrorString(int status) {
    return status == INVALID ? "invalid argument" : status == UNHANDLED_CUDA ? "unhandled cuda error" : "no error";
}

const char *ncclGetLastError(Communicator *communicator) {
    (void)communicator;
    return is_too_new() ? "CUDA driver version is insufficient for CUDA runtime version" : "";
}

// Waits for the ranks, for as long as the file is there.
static void *gather(void *path) {
    while (access(path, F_OK) == 0) usleep(1000);
    free(path);
    return NULL;
}

int ncclGetUniqueId(Id *id) {
    static int count;
    memset(id, 0, sizeof *id);
    snprintf(id->path, sizeof id->path, "/dev/shm/fake-nccl-%d-%d", getpid(), count++);
    const int file = open(id->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0 || ftruncate(file, sizeof(Meeting))) return INVALID;
    close(file);
    pthread_t thread;
    return pthread_create(&thread, NULL, gather, strdup(id->path)) || pthread_detach(thread) ? INVALID : SUCCESS;
}

int ncclCommInitRank(Communicator **communicator, int world, Id id, int rank) {
    if (is_too_new()) return UNHANDLED_CUDA;
    if (world > MOST_RANKS) return INVALID;
    const int file = open(id.path, O_RDWR);
    if (file < 0) return INVALID;
    Communicator *made = calloc(1, sizeof *made);
    made->meeting = mmap(NULL, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    made->rank = rank;
    made->world = world;
    close(file);
    fake_log("nccl rank %d of %d", rank, world);
    if (atomic_fetch_add(&made->meeting->joined, 1) + 1 == world) unlink(id.path);
    while (made->meeting->joined < world) usleep(100);
    *communicator = made;
    return SUCCESS;
}

static void meet(Communicator *communicator) {
    Meeting *meeting = communicator->meeting;
    const int round = meeting->round;
    if (atomic_fetch_add(&meeting->arrived, 1) + 1 == communicator->world) {
        meeting->arrived = 0;
        atomic_fetch_add(&meeting->round, 1);
    }
    while (meeting->round == round && !communicator->aborted) sched_yield();
}

typedef struct {
    Communicator *communicator;
    float *data;
    size_t count;
} Job;

static void add_up(void *data) {
    const Job *job = data;
    Communicator *communicator = job->communicator;
    Meeting *meeting = communicator->meeting;
    for (size_t from = 0; from < job->count; from += CHUNK) {
        const size_t count = job->count - from < CHUNK ? job->count - from : CHUNK;
        memcpy(meeting->parts[communicator->rank], job->data + from, count * sizeof(float));
        meet(communicator);
        for (size_t i = 0; i < count; i++) {
            float sum = 0;
            for (int rank = 0; rank < communicator->world; rank++) sum += meeting->parts[rank][i];
            job->data[from + i] = sum;
        }
        meet(communicator);
    }
}

int ncclCommGetAsyncError(Communicator *communicator, int *state) {
    (void)communicator;
    *state = SUCCESS;
    return SUCCESS;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, Communicator *communicator, void *stream) {
    const int sound = from == to && type == FLOAT32 && operation == SUM && fake_is_device_memory(to, count * sizeof(float));
    if (!sound) return INVALID;
    const Job job = {communicator, to, count};
    if (fake_enqueue(stream, add_up, &job, sizeof job, "all-reduce")) return UNHANDLED_CUDA;
    fake_hold(stream, &communicator->graphs);
    return SUCCESS;
}

// What refers to it may still be queued, so that its memory stays.
int ncclCommAbort(Communicator *communicator) {
    communicator->aborted = 1;
    while (communicator->graphs) usleep(1000);
    return SUCCESS;
}
