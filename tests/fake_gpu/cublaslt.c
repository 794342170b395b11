// libcublasLt.so for tests: products term by term, in double precision, of what the descriptors say.

#include "emulator.h"
#include "fake.h"

#include <stdlib.h>

enum { OK = 0, NOT_INITIALIZED = 1, INVALID = 7, FAILED = 13, F32 = 0, F16 = 2, BF16 = 14, COMPUTE_32F = 68, TRANSPOSE_A = 3 };

typedef struct {
    int type;
    uint64_t rows, columns;
    int64_t stride;
} Layout;

typedef struct {
    int transposed;
} Product;

int cuDriverGetVersion(int *version);

size_t cublasLtGetCudartVersion(void) { return (size_t)fake_setting("FAKE_CUBLASLT", 12080); }

// It works with drivers of its own major version, and later ones.
int cublasLtCreate(void **handle) {
    int driver = 0;
    *handle = malloc(1);
    return cuDriverGetVersion(&driver) || cublasLtGetCudartVersion() / 1000 > (size_t)driver / 1000 ? NOT_INITIALIZED : OK;
}

int cublasLtDestroy(void *handle) {
    free(handle);
    return OK;
}

int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = malloc(sizeof **layout);
    const Layout value = {type, rows, columns, stride};
    **layout = value;
    return OK;
}

int cublasLtMatrixLayoutDestroy(Layout *layout) {
    free(layout);
    return OK;
}

// TF32 would be another compute type, and is refused.
int cublasLtMatmulDescCreate(Product **product, int compute, int scale) {
    *product = calloc(1, sizeof **product);
    return compute == COMPUTE_32F && scale == F32 ? OK : INVALID;
}

int cublasLtMatmulDescDestroy(Product *product) {
    free(product);
    return OK;
}

int cublasLtMatmulDescSetAttribute(Product *product, int attribute, const void *value, size_t bytes) {
    if (attribute != TRANSPOSE_A || bytes != sizeof(int)) return INVALID;
    memcpy(&product->transposed, value, sizeof(int));
    return OK;
}

int cublasLtMatmulPreferenceCreate(void **preference) {
    *preference = malloc(1);
    return OK;
}

int cublasLtMatmulPreferenceDestroy(void *preference) {
    free(preference);
    return OK;
}

int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes) {
    (void)preference;
    (void)value;
    return attribute == 1 && bytes == sizeof(size_t) ? OK : INVALID;
}

typedef struct {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
} Choice;

static int agrees(const Product *product, const Layout *a, const Layout *b, const Layout *d) {
    const uint64_t m = product->transposed ? a->columns : a->rows, k = product->transposed ? a->rows : a->columns;
    return m == d->rows && k == b->rows && b->columns == d->columns && d->type == F32 && a->type == b->type
        && a->stride >= (int64_t)a->rows && b->stride >= (int64_t)b->rows && d->stride >= (int64_t)d->rows;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, Product *product, Layout *a, Layout *b, Layout *c, Layout *d, void *preference,
                                   int wanted, Choice *choice, int *found) {
    (void)handle;
    (void)c;
    (void)preference;
    memset(choice, 0, sizeof *choice);
    choice->algorithm[0] = 0x5afe;
    *found = wanted >= 1;
    return agrees(product, a, b, d) ? OK : INVALID;
}

typedef struct {
    Product product;
    Layout a_layout, b_layout, d_layout;
    const void *a, *b;
    float *d, before;
} Job;

static float read_as(int type, const void *data, uint64_t at) {
    if (type == F32) return ((const float *)data)[at];
    const unsigned short bits = ((const unsigned short *)data)[at];
    return type == F16 ? emulated_from_f16(bits) : FLOAT_OF((unsigned)bits << 16);
}

static void multiply(void *data) {
    const Job *job = data;
    const Layout *a = &job->a_layout, *b = &job->b_layout, *d = &job->d_layout;
    for (uint64_t column = 0; column < d->columns; column++) {
        for (uint64_t row = 0; row < d->rows; row++) {
            double sum = job->before != 0.0f ? job->d[column * (uint64_t)d->stride + row] : 0.0;
            for (uint64_t k = 0; k < b->rows; k++) {
                const uint64_t at = job->product.transposed ? row * (uint64_t)a->stride + k : k * (uint64_t)a->stride + row;
                sum += (double)read_as(a->type, job->a, at) * read_as(b->type, job->b, column * (uint64_t)b->stride + k);
            }
            job->d[column * (uint64_t)d->stride + row] = (float)sum;
        }
    }
}

static int holds(const Layout *layout, const void *address) {
    const size_t elements = (size_t)layout->stride * (layout->columns - 1) + layout->rows;
    return fake_is_device_memory(address, elements * (layout->type == F32 ? 4 : 2)) && (uint64_t)address % 16 == 0;
}

int cublasLtMatmul(void *handle, Product *product, const float *alpha, const void *a, Layout *a_layout, const void *b,
                   Layout *b_layout, const float *beta, const void *c, Layout *c_layout, float *d, Layout *d_layout,
                   const uint64_t *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    (void)handle;
    const Job job = {*product, *a_layout, *b_layout, *d_layout, a, b, d, *beta};
    const int sound = *alpha == 1.0f && (*beta == 0.0f || *beta == 1.0f) && c == d && c_layout == d_layout && algorithm[0] == 0x5afe && agrees(product, a_layout, b_layout, d_layout)
        && holds(a_layout, a) && holds(b_layout, b) && holds(d_layout, d) && fake_is_device_memory(workspace, workspace_bytes);
    if (!sound) return INVALID;
    return fake_enqueue(stream, multiply, &job, sizeof job, "product") ? FAILED : OK;
}
