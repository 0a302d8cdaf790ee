// Preloaded into a process whose device memory is the host driver's (../driver), together with it: UCX sees host memory there, and NIXL takes
// none of that as VRAM. What UCX is asked about such memory is answered as it would be on a GPU; the bytes go as host memory does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// As in UCX's ucp/api/ucp.h and ucs/type/status.h, unchanged since 1.9.
struct attributes {
    uint64_t mask;
    void *address;
    size_t length;
    int memory_type;
};
enum { ASKS_ADDRESS = 1, ASKS_MEMORY_TYPE = 4, CUDA_MEMORY = 1 };
typedef signed char status;

static int is_ucp(struct dl_phdr_info *object, size_t size, void *path) {
    (void)size;
    const char *name = strrchr(object->dlpi_name, '/');
    if (name == NULL || strncmp(name, "/libucp", 7) != 0) return 0;
    *(const char **)path = object->dlpi_name;
    return 1;
}

// A function of a library that is loaded already, or NULL.
static void *of(const char *library, const char *function) {
    void *loaded = library == NULL ? NULL : dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    return loaded == NULL ? NULL : dlsym(loaded, function);
}

status ucp_mem_query(void *memory, struct attributes *attributes) {
    const char *path = NULL;
    dl_iterate_phdr(is_ucp, &path);
    status (*asked)(void *, struct attributes *) = (status (*)(void *, struct attributes *))of(path, "ucp_mem_query");
    int (*holds)(uintptr_t) = (int (*)(uintptr_t))of("libcuda.so.1", "kvgate_holds");
    if (asked == NULL) return -1;
    const uint64_t mask = attributes->mask;
    attributes->mask |= ASKS_ADDRESS;
    const status answer = asked(memory, attributes);
    attributes->mask = mask;
    if (answer == 0 && (mask & ASKS_MEMORY_TYPE) != 0 && holds != NULL && holds((uintptr_t)attributes->address) != 0) {
        attributes->memory_type = CUDA_MEMORY;
    }
    return answer;
}
