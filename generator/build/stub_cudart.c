/* A CUDA runtime that only writes down what it is asked for: the probe's stand-in on a machine without a GPU.
 *
 * It defines the same symbols as the support library. Every launch becomes one line of JSON in the file that the
 * environment variable DSV4_PROBE_LOG names: kernel, grid, block, cluster, dynamic shared memory, PDL, cooperative.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DYNAMIC_SMEM_OPTIN 97
#define OPTIN_BYTES 232448

typedef void *handle;

/* The public layouts of cudaLaunchAttribute and cudaLaunchConfig_t. */
typedef struct {
    int32_t id;
    int32_t padding;
    union {
        int32_t number;
        uint32_t cluster[3];
        unsigned char bytes[64];
    } value;
} attribute;

typedef struct {
    uint32_t grid[3], block[3];
    size_t dynamic_smem_bytes;
    handle stream;
    const attribute *attributes;
    uint32_t attribute_count;
} configuration;

enum { ATTRIBUTE_COOPERATIVE = 2, ATTRIBUTE_CLUSTER = 4, ATTRIBUTE_PDL = 6 };

int _cudaLibraryLoadData(handle *library, const void *code, void *jit, void **jit_values, unsigned jit_count,
                         void *options, void **option_values, unsigned option_count) {
    (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)option_values, (void)option_count;
    *library = (handle)code;
    return 0;
}

/* A kernel's handle is a copy of its name: the launch has it at hand. */
int _cudaLibraryGetKernel(handle *kernel, handle library, const char *name) {
    (void)library;
    *kernel = strdup(name);
    return *kernel == NULL;
}

int _cudaDeviceGetAttribute(int *value, int attribute_id, int device) {
    (void)device;
    *value = attribute_id == MAX_DYNAMIC_SMEM_OPTIN ? OPTIN_BYTES : 0;
    return 0;
}

int _cuKernelGetAttribute(int *value, int attribute_id, handle kernel, int device) {
    (void)attribute_id, (void)kernel, (void)device;
    *value = 0;
    return 0;
}

int _cudaKernelSetAttributeForDevice(handle kernel, int attribute_id, int value, int device) {
    (void)kernel, (void)attribute_id, (void)value, (void)device;
    return 0;
}

int _cudaFuncSetAttribute(const void *function, int attribute_id, int value) {
    (void)function, (void)attribute_id, (void)value;
    return 0;
}

int _cudaGetDevice(int *device) {
    *device = 0;
    return 0;
}

int _cudaSetDevice(int device) {
    (void)device;
    return 0;
}

int _cudaLaunchKernelEx(const configuration *launch, handle kernel, void **arguments) {
    (void)arguments;
    uint32_t cluster[3] = {1, 1, 1};
    int pdl = 0, cooperative = 0;
    for (uint32_t i = 0; i < launch->attribute_count; i++) {
        const attribute *item = &launch->attributes[i];
        if (item->id == ATTRIBUTE_CLUSTER) memcpy(cluster, item->value.cluster, sizeof cluster);
        if (item->id == ATTRIBUTE_PDL) pdl = item->value.number != 0;
        if (item->id == ATTRIBUTE_COOPERATIVE) cooperative = item->value.number != 0;
    }
    const char *path = getenv("DSV4_PROBE_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (!log) return 1;
    fprintf(log,
            "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"cluster\": [%u, %u, %u], "
            "\"smem_bytes\": %zu, \"pdl\": %s, \"cooperative\": %s}\n",
            (const char *)kernel, launch->grid[0], launch->grid[1], launch->grid[2], launch->block[0],
            launch->block[1], launch->block[2], cluster[0], cluster[1], cluster[2], launch->dynamic_smem_bytes,
            pdl ? "true" : "false", cooperative ? "true" : "false");
    return fclose(log) != 0;
}

int cuda_dialect_init_library_once(handle *state, int (*init)(handle *), int (*load)(handle *, int),
                                   void (*raise)(const char *, const char *)) {
    if (*state) return 0;
    handle library = NULL;
    int code = init(&library);
    if (code == 0) code = load(&library, 0);
    if (code == 0) *state = library;
    else raise("RuntimeError", "the recording stub could not load the kernel");
    return code == 0 ? 0 : -1;
}

void cuda_dialect_unload_library_once(handle *state) { *state = NULL; }

void CuteDSLRT_TVMFFISetRaisedCudaError(void (*raise)(const char *, const char **, int32_t), int code) {
    const char *parts[] = {"the recording stub refused a call"};
    (void)code;
    raise("RuntimeError", parts, 1);
}
