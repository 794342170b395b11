// What the fake libraries share.
#pragma once

#include <stdatomic.h>
#include <stddef.h>

struct EmulatedKernel {
    int element;
    const char *name;
    void (*kernel)(const void *arguments);
    size_t argument_bytes;
    unsigned most_threads;
};

const struct EmulatedKernel *emulator_find(int element, const char *name);
void emulator_launch(const struct EmulatedKernel *kernel, const unsigned grid[3], unsigned threads, size_t shared_bytes, const void *arguments);

// Queues `work` on `size` bytes of `data`, or keeps both where the stream captures; returns the driver's status. `what` is written to the
// log.
int fake_enqueue(void *stream, void (*work)(void *data), const void *data, size_t size, const char *what);
// Where the stream captures, the last work counts in `count` as long as its graph lives.
void fake_hold(void *stream, atomic_int *count);
// Whether all bytes lie in one allocation of the device.
int fake_is_device_memory(const void *address, size_t bytes);
// Writes a line to the file that FAKE_GPU_LOG names.
void fake_log(const char *format, ...);
// A number from the environment.
long fake_setting(const char *name, long otherwise);
