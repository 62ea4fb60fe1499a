/* The support library: what the host half of a compiled kernel calls, forwarded to the CUDA runtime of the process.
 *
 * A kernel.so is linked against nothing. Its undefined symbols, besides tvm-ffi's, are the ones below; they carry the
 * names of public CUDA runtime and driver functions with a leading underscore and the same arguments. The CUDA runtime
 * itself is looked up at the first call, so this library can be opened on a machine without one.
 * Open it with RTLD_GLOBAL before the first kernel.so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stddef.h>

#define DSV4_SUPPORT_ABI 1
#define NOT_INITIALIZED 3         /* cudaErrorInitializationError */
#define INVALID_DEVICE_FUNCTION 98
#define NO_KERNEL_IMAGE 209       /* cudaErrorNoKernelImageForDevice */

typedef void *handle;
typedef void (*raise_text)(const char *kind, const char *message);
typedef void (*raise_parts)(const char *kind, const char **parts, int32_t count);

static pthread_once_t searched = PTHREAD_ONCE_INIT;
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static handle runtime_library, driver_library;

int dsv4_support_abi(void) { return DSV4_SUPPORT_ABI; }

/* The CUDA runtime that torch has already brought in, else the newest that the loader finds by name. */
static void search(void) {
    static const char *const names[] = {"libcudart.so.13", "libcudart.so.12"};
    driver_library = dlopen("libcuda.so.1", RTLD_LAZY);
    if (dlsym(RTLD_DEFAULT, "cudaLibraryLoadData")) return; /* runtime_library stays RTLD_DEFAULT, a null pointer */
    for (int pass = 0; pass < 2 && runtime_library == NULL; pass++)
        for (int i = 0; i < 2 && runtime_library == NULL; i++) {
            handle found = dlopen(names[i], RTLD_LAZY | (pass == 0 ? RTLD_NOLOAD : 0));
            if (found && dlsym(found, "cudaLibraryLoadData")) runtime_library = found;
        }
}

/* Where no runtime was found the look-up goes through RTLD_DEFAULT and gives a null pointer. */
static handle in_runtime(const char *name) {
    pthread_once(&searched, search);
    return dlsym(runtime_library, name);
}

static handle in_driver(const char *name) {
    pthread_once(&searched, search);
    return driver_library ? dlsym(driver_library, name) : NULL;
}

/* Each forwarder looks its function up once; two threads that do it at the same time write the same value. */
#define FORWARD(lookup, symbol, declaration, types, arguments)     \
    int _##symbol declaration {                                    \
        static int(*function) types;                               \
        if (!function) function = (int(*) types)lookup(#symbol);   \
        return function ? function arguments : NOT_INITIALIZED;    \
    }

FORWARD(in_runtime, cudaLibraryLoadData,
        (handle *library, const void *code, void *jit, void **jit_values, unsigned jit_count, void *options,
         void **option_values, unsigned option_count),
        (handle *, const void *, void *, void **, unsigned, void *, void **, unsigned),
        (library, code, jit, jit_values, jit_count, options, option_values, option_count))
FORWARD(in_runtime, cudaLibraryGetKernel, (handle *kernel, handle library, const char *name),
        (handle *, handle, const char *), (kernel, library, name))
FORWARD(in_runtime, cudaDeviceGetAttribute, (int *value, int attribute, int device), (int *, int, int),
        (value, attribute, device))
FORWARD(in_runtime, cudaFuncSetAttribute, (const void *function_, int attribute, int value),
        (const void *, int, int), (function_, attribute, value))
FORWARD(in_runtime, cudaKernelSetAttributeForDevice, (handle kernel, int attribute, int value, int device),
        (handle, int, int, int), (kernel, attribute, value, device))
FORWARD(in_runtime, cudaGetDevice, (int *device), (int *), (device))
FORWARD(in_runtime, cudaSetDevice, (int device), (int), (device))
FORWARD(in_driver, cuKernelGetAttribute, (int *value, int attribute, handle kernel, int device),
        (int *, int, handle, int), (value, attribute, kernel, device))

/* The host code fills a cudaLaunchConfig_t; only the name differs from the public function. */
int _cudaLaunchKernelEx(const void *config, const void *kernel, void **arguments) {
    static int (*function)(const void *, const void *, void **);
    if (!function) function = (int (*)(const void *, const void *, void **))in_runtime("cudaLaunchKernelExC");
    return function ? function(config, kernel, arguments) : NOT_INITIALIZED;
}

static const char *described(const char *function_name, int code, const char *without_runtime) {
    const char *(*describe)(int) = (const char *(*)(int))in_runtime(function_name);
    return describe ? describe(code) : without_runtime;
}

static const char *error_name(int code) { return described("cudaGetErrorName", code, "no CUDA runtime"); }

static const char *error_text(int code) {
    return described("cudaGetErrorString", code, "libcudart.so.13 or .12 was not found; install torch with CUDA");
}

void CuteDSLRT_TVMFFISetRaisedCudaError(raise_parts raise, int code) {
    const char *parts[] = {"CUDA error ", error_name(code), ": ", error_text(code)};
    raise("RuntimeError", parts, 4);
}

static void raise_load_error(raise_text raise, int code) {
    char message[512];
    const char *parts[] = {"loading the kernel: CUDA error ", error_name(code), ": ", error_text(code)};
    size_t used = 0;
    for (int i = 0; i < 4; i++)
        for (const char *c = parts[i]; *c && used + 1 < sizeof message; c++) message[used++] = *c;
    message[used] = 0;
    raise("RuntimeError", message);
}

/* Load the kernels of one .so on its first call and prepare them on every visible device.
 * *state becomes the library's handle. A device of another architecture is passed over, as long as one device takes
 * the kernel: a launch on the other one reports its own error. Returns 0, or -1 with the error raised. */
int cuda_dialect_init_library_once(handle *state, int (*init)(handle *), int (*load)(handle *, int), raise_text raise) {
    if (__atomic_load_n(state, __ATOMIC_ACQUIRE)) return 0;
    pthread_mutex_lock(&loading);
    int code = 0;
    if (!__atomic_load_n(state, __ATOMIC_ACQUIRE)) {
        handle library = NULL;
        int devices = 0, ready = 0;
        int (*count)(int *) = (int (*)(int *))in_runtime("cudaGetDeviceCount");
        int (*unload)(handle) = (int (*)(handle))in_runtime("cudaLibraryUnload");
        code = count ? count(&devices) : NOT_INITIALIZED;
        if (code == 0) code = init(&library);
        int refused = 0;
        for (int device = 0; code == 0 && device < devices; device++) {
            int outcome = load(&library, device);
            if (outcome == 0) ready++;
            else if (outcome == NO_KERNEL_IMAGE || outcome == INVALID_DEVICE_FUNCTION) refused = outcome;
            else code = outcome;
        }
        if (code == 0 && ready == 0) code = refused ? refused : NO_KERNEL_IMAGE;
        if (code == 0) __atomic_store_n(state, library, __ATOMIC_RELEASE);
        else if (library && unload) unload(library);
    }
    pthread_mutex_unlock(&loading);
    if (code == 0) return 0;
    raise_load_error(raise, code);
    return -1;
}

void cuda_dialect_unload_library_once(handle *state) {
    handle library = __atomic_exchange_n(state, NULL, __ATOMIC_ACQ_REL);
    int (*unload)(handle) = (int (*)(handle))in_runtime("cudaLibraryUnload");
    if (library && unload) unload(library);
}
