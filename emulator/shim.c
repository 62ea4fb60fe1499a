/* A CUDA runtime whose device is the emulator: the symbols that the host half of a compiled kernel calls.
 *
 * Open it with RTLD_GLOBAL before a kernel's object and before anything that brings a CUDA runtime of its own. What
 * needs thought is answered by the functions that Python installs (`dsv4_shim_install`): they are called synchronously,
 * inside the host code, while the kernel's arguments are still alive. The names are those of public CUDA runtime and
 * driver functions, partly with a leading underscore, and take the same arguments.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *handle;

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719 };
enum { ATTRIBUTES = 256, STATIC_SMEM = 1, MAX_DYNAMIC_SMEM = 8 };
enum { LAUNCH_COOPERATIVE = 2, LAUNCH_CLUSTER = 4, LAUNCH_PDL = 6 };

/* The public layouts of cudaLaunchAttribute and cudaLaunchConfig_t. Unused bytes of a value are garbage. */
typedef struct {
    int32_t id, padding;
    union {
        int32_t number;
        uint32_t cluster[3];
        unsigned char bytes[64];
    } value;
} Attribute;

typedef struct {
    uint32_t grid[3], block[3];
    size_t dynamic_smem_bytes;
    handle stream;
    const Attribute *attributes;
    uint32_t attribute_count;
} Configuration;

typedef struct {
    int64_t library;
    int32_t static_smem_bytes, max_dynamic_smem_bytes; /* -1: never set */
    char name[];
} Kernel;

/* What Python gets of a launch; `ShimLaunch` in shim.py has the same fields. */
typedef struct {
    const char *name;
    int64_t library;
    uint32_t grid[3], block[3], cluster[3];
    int32_t max_dynamic_smem_bytes, pdl, cooperative;
    uint64_t dynamic_smem_bytes, stream;
    void **arguments;
} Launch;

/* The arguments of cuTensorMapEncodeTiled. */
typedef struct {
    void *map;
    int32_t data_type;
    uint32_t rank;
    uint64_t address;
    const uint64_t *dims, *strides;
    const uint32_t *box, *element_strides;
    int32_t interleave, swizzle, l2_promotion, fill;
} TensorMap;

typedef struct {
    int64_t (*load)(const void *image);                      /* number of the library; 0 refuses it */
    int32_t (*static_smem)(int64_t library, const char *name); /* bytes; negative: there is no such kernel */
    int32_t (*launch)(const Launch *launch);                 /* 0, or a CUDA error */
    int32_t (*encode)(const TensorMap *map);
} Callbacks;

static Callbacks python;
static int32_t attributes[ATTRIBUTES];
static int first_error; /* of a call whose result the host code throws away */

void dsv4_shim_install(const Callbacks *callbacks) { python = *callbacks; }

void dsv4_shim_attribute(int32_t id, int32_t value)
{
    if (id >= 0 && id < ATTRIBUTES) attributes[id] = value;
}

/* The first error that nobody was told, and forgets it. */
int32_t dsv4_shim_take_error(void)
{
    int error = first_error;
    first_error = SUCCESS;
    return error;
}

/* ------------------------------------------------------------------------------------------- libraries and kernels */

int _cudaLibraryLoadData(handle *library, const void *code, void *jit, void **jit_values, unsigned jit_count, void *options,
                         void **option_values, unsigned option_count)
{
    (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)option_values, (void)option_count;
    int64_t number = python.load ? python.load(code) : 0;
    *library = (handle)(intptr_t)number;
    return number > 0 ? SUCCESS : INVALID_IMAGE;
}

int _cudaLibraryUnload(handle library)
{
    (void)library;
    return SUCCESS;
}

int _cudaLibraryGetKernel(handle *kernel, handle library, const char *name)
{
    int32_t bytes = python.static_smem((int64_t)(intptr_t)library, name);
    if (bytes < 0) return NOT_FOUND;
    Kernel *made = malloc(sizeof *made + strlen(name) + 1); /* lives as long as the process, as the library does */
    if (!made) return INVALID_VALUE;
    *made = (Kernel){.library = (int64_t)(intptr_t)library, .static_smem_bytes = bytes, .max_dynamic_smem_bytes = -1};
    strcpy(made->name, name);
    *kernel = made;
    return SUCCESS;
}

int _cuKernelGetAttribute(int *value, int attribute, handle kernel, int device)
{
    (void)device;
    const Kernel *k = kernel;
    *value = attribute == STATIC_SMEM ? k->static_smem_bytes : attribute == MAX_DYNAMIC_SMEM ? k->max_dynamic_smem_bytes : 0;
    return SUCCESS;
}

int _cudaKernelSetAttributeForDevice(handle kernel, int attribute, int value, int device)
{
    (void)device;
    if (attribute == MAX_DYNAMIC_SMEM) ((Kernel *)kernel)->max_dynamic_smem_bytes = value;
    return SUCCESS;
}

int _cudaFuncSetAttribute(const void *function, int attribute, int value)
{
    if (attribute == MAX_DYNAMIC_SMEM) ((Kernel *)(uintptr_t)function)->max_dynamic_smem_bytes = value;
    return SUCCESS;
}

/* -------------------------------------------------------------------------------------------------------- devices */

int _cudaDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute >= 0 && attribute < ATTRIBUTES ? attributes[attribute] : 0;
    return SUCCESS;
}

int _cudaGetDevice(int *device)
{
    *device = 0;
    return SUCCESS;
}

int _cudaSetDevice(int device) { return device == 0 ? SUCCESS : INVALID_VALUE; }

int _cudaGetDeviceCount(int *count)
{
    *count = 1;
    return SUCCESS;
}

const char *_cudaGetErrorName(int code) { return code ? "EmulatorError" : "cudaSuccess"; }
const char *_cudaGetErrorString(int code) { return code ? "the emulator refused the call" : "no error"; }

/* The same without underscore, for objects with the plain C interface. */
int cudaGetDeviceCount(int *count) { return _cudaGetDeviceCount(count); }
int cudaGetDevice(int *device) { return _cudaGetDevice(device); }
int cudaSetDevice(int device) { return _cudaSetDevice(device); }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { return _cudaDeviceGetAttribute(value, attribute, device); }
int cudaLibraryUnload(handle library) { return _cudaLibraryUnload(library); }
const char *cudaGetErrorName(int code) { return _cudaGetErrorName(code); }
const char *cudaGetErrorString(int code) { return _cudaGetErrorString(code); }

/* ------------------------------------------------------------------------------------------------------- launches */

int _cudaLaunchKernelEx(const Configuration *config, handle kernel, void **arguments)
{
    const Kernel *k = kernel;
    Launch launch = {
        .name = k->name,
        .library = k->library,
        .cluster = {1, 1, 1},
        .max_dynamic_smem_bytes = k->max_dynamic_smem_bytes,
        .dynamic_smem_bytes = config->dynamic_smem_bytes,
        .stream = (uint64_t)(uintptr_t)config->stream,
        .arguments = arguments,
    };
    memcpy(launch.grid, config->grid, sizeof launch.grid);
    memcpy(launch.block, config->block, sizeof launch.block);
    for (uint32_t i = 0; i < config->attribute_count; i++) {
        const Attribute *item = &config->attributes[i];
        if (item->id == LAUNCH_CLUSTER) memcpy(launch.cluster, item->value.cluster, sizeof launch.cluster);
        if (item->id == LAUNCH_PDL) launch.pdl = item->value.number != 0;
        if (item->id == LAUNCH_COOPERATIVE) launch.cooperative = item->value.number != 0;
    }
    return python.launch(&launch);
}

int _cuTensorMapEncodeTiled(void *map, int data_type, uint32_t rank, void *address, const uint64_t *dims, const uint64_t *strides,
                            const uint32_t *box, const uint32_t *element_strides, int interleave, int swizzle, int l2_promotion,
                            int fill)
{
    TensorMap asked = {map, data_type, rank, (uint64_t)(uintptr_t)address, dims, strides, box, element_strides, interleave,
                       swizzle, l2_promotion, fill};
    return python.encode(&asked);
}

/* The host code goes on after it, so the error is kept until the call is over. */
void cuda_dialect_assert_success(int code)
{
    if (code && !first_error) first_error = code;
}

/* Loads the kernels of an object at its first call. Returns 0, or -1 with the error raised. */
int cuda_dialect_init_library_once(handle *state, int (*init)(handle *), int (*load)(handle *, int),
                                   void (*raise)(const char *kind, const char *message))
{
    if (*state) return 0;
    handle library = NULL;
    int code = init(&library);
    if (!code) code = load(&library, 0);
    if (!code) *state = library;
    else raise("RuntimeError", "the emulator does not take this kernel");
    return code ? -1 : 0;
}

void cuda_dialect_unload_library_once(handle *state) { *state = NULL; }

void CuteDSLRT_TVMFFISetRaisedCudaError(void (*raise)(const char *kind, const char **parts, int32_t count), int code)
{
    char text[64];
    const char *parts[] = {text};
    snprintf(text, sizeof text, "the emulator refused a call (CUDA error %d)", code);
    raise("RuntimeError", parts, 1);
}
