// A driver on the host: the calls of libcuda.so.1 that kvgate makes, over memory of this process. "Device" memory may be touched within a
// call only (unless told otherwise), a context must be current, and kernels are the host build of the source that nvcc compiles.
#include "blocks.h"
#include "state.h"
#include <cstdio>
#include <cstring>
#include <sys/mman.h>

using namespace kvgate::driver;
using kvgate::host::for_each_block;

namespace {

std::size_t in_pages(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

struct Kernel {
    const char *name;
    std::size_t params;
    void (*run)(u64 blocks, void **params);
};

u64 word(void *param) { return *static_cast<u64 *>(param); }

template <class T>
T *pointer(void *param) {
    return reinterpret_cast<T *>(word(param));
}

// An odd order, so that no test passes by the luck of the first one.
constexpr u32 FIRST = 5, STEP = 37;

const Kernel KERNELS[] = {
    {"digest_chunks", 4, [](u64 blocks, void **p) {
         for_each_block(blocks, FIRST, STEP, [&] { digest_chunks(pointer<const Page>(p[0]), word(p[1]), word(p[2]), pointer<u64>(p[3])); });
     }},
    {"fold_chunks", 4, [](u64 blocks, void **p) {
         for_each_block(blocks, FIRST, STEP, [&] { fold_chunks(pointer<const Page>(p[0]), word(p[1]), pointer<const u64>(p[2]), pointer<u64>(p[3])); });
     }},
    {"zero_ranges", 3, [](u64 blocks, void **p) {
         for_each_block(blocks, FIRST, STEP, [&] { zero_ranges(pointer<const Range>(p[0]), word(p[1]), word(p[2])); });
     }},
    {"copy_ranges", 3, [](u64 blocks, void **p) {
         for_each_block(blocks, FIRST, STEP, [&] { copy_ranges(pointer<const Copy>(p[0]), word(p[1]), word(p[2])); });
     }},
};

int copy(const char *name, std::uintptr_t to, bool to_device, std::uintptr_t from, bool from_device, std::size_t len) {
    Call call(name);
    if (call.refused != SUCCESS) return call.refused;
    if ((to_device && !holds(to, len)) || (from_device && !holds(from, len))) return ILLEGAL_ADDRESS;
    std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), len);
    return SUCCESS;
}

int flags = 0;
void *const STREAM = &flags;

}  // namespace

#define CALL(name, needs_context) \
    Call call(name, needs_context); \
    if (call.refused != SUCCESS) return call.refused

extern "C" {

int cuInit(unsigned) {
    State &all = state();
    std::lock_guard alone(all.alone);
    all.initialised = all.init == SUCCESS;
    return all.init;
}

int cuDriverGetVersion(int *version) {
    *version = state().version;
    return SUCCESS;
}

int cuGetErrorName(int error, const char **name) {
    switch (error) {
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return SUCCESS;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return SUCCESS;
        case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return SUCCESS;
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; return SUCCESS;
        case INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; return SUCCESS;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; return SUCCESS;
        default: *name = nullptr; return INVALID_VALUE;
    }
}

int cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

int cuDeviceGetCount(int *count) {
    CALL("cuDeviceGetCount", false);
    *count = state().devices;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    CALL("cuDeviceGet", false);
    if (ordinal < 0 || ordinal >= state().devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int len, int device) {
    CALL("cuDeviceGetName", false);
    std::snprintf(name, static_cast<std::size_t>(len), "kvgate host device %d", device);
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    CALL("cuDeviceGetAttribute", false);
    switch (attribute) {
        case 75: *value = state().capability / 10; return SUCCESS;
        case 76: *value = state().capability % 10; return SUCCESS;
        // Remote writes need a flush, and the host can do it.
        case 117: *value = 1; return SUCCESS;
        case 118: *value = 0; return SUCCESS;
        // kHz, and bits: an H100's.
        case 36: *value = 2619000; return SUCCESS;
        case 37: *value = 5120; return SUCCESS;
        default: *value = 0; return SUCCESS;
    }
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    CALL("cuDevicePrimaryCtxRetain", false);
    state().contexts += 1;
    // Any pointer that is not null; the device's number is all there is to a context.
    *context = reinterpret_cast<void *>(static_cast<std::uintptr_t>(device) + 1);
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    CALL("cuDevicePrimaryCtxRelease_v2", false);
    state().contexts -= 1;
    return SUCCESS;
}

int cuCtxGetCurrent(void **context) {
    *context = reinterpret_cast<void *>(static_cast<std::uintptr_t>(current + 1));
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    current = static_cast<int>(reinterpret_cast<std::uintptr_t>(context)) - 1;
    return SUCCESS;
}

int cuMemGetInfo_v2(std::size_t *free, std::size_t *total) {
    CALL("cuMemGetInfo_v2", true);
    *total = state().total;
    *free = state().total - state().used[current];
    return SUCCESS;
}

int cuMemAlloc_v2(std::uintptr_t *address, std::size_t bytes) {
    CALL("cuMemAlloc_v2", true);
    State &all = state();
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > all.total - all.used[current]) return OUT_OF_MEMORY;
    const std::size_t mapped = in_pages(bytes);
    void *memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    // What a device gives is not zeroed.
    std::memset(memory, 0xdb, std::min<std::size_t>(bytes, 1 << 20));
    *address = reinterpret_cast<std::uintptr_t>(memory);
    all.allocations[*address] = Allocation{bytes, mapped, current};
    all.used[current] += bytes;
    return SUCCESS;
}

int cuMemFree_v2(std::uintptr_t address) {
    CALL("cuMemFree_v2", true);
    State &all = state();
    const auto found = all.allocations.find(address);
    if (found == all.allocations.end()) return INVALID_VALUE;
    munmap(reinterpret_cast<void *>(address), found->second.mapped);
    all.used[found->second.device] -= found->second.asked;
    all.allocations.erase(found);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(std::uintptr_t to, const void *from, std::size_t len) {
    return copy("cuMemcpyHtoD_v2", to, true, reinterpret_cast<std::uintptr_t>(from), false, len);
}

int cuMemcpyDtoH_v2(void *to, std::uintptr_t from, std::size_t len) {
    return copy("cuMemcpyDtoH_v2", reinterpret_cast<std::uintptr_t>(to), false, from, true, len);
}

int cuMemcpyDtoD_v2(std::uintptr_t to, std::uintptr_t from, std::size_t len) { return copy("cuMemcpyDtoD_v2", to, true, from, true, len); }

int cuMemcpyHtoDAsync_v2(std::uintptr_t to, const void *from, std::size_t len, void *) {
    return copy("cuMemcpyHtoDAsync_v2", to, true, reinterpret_cast<std::uintptr_t>(from), false, len);
}

int cuMemcpyDtoHAsync_v2(void *to, std::uintptr_t from, std::size_t len, void *) {
    return copy("cuMemcpyDtoHAsync_v2", reinterpret_cast<std::uintptr_t>(to), false, from, true, len);
}

int cuMemsetD8_v2(std::uintptr_t address, unsigned char byte, std::size_t len) {
    CALL("cuMemsetD8_v2", true);
    if (!holds(address, len)) return ILLEGAL_ADDRESS;
    std::memset(reinterpret_cast<void *>(address), byte, len);
    return SUCCESS;
}

int cuMemHostRegister_v2(void *memory, std::size_t len, unsigned) {
    CALL("cuMemHostRegister_v2", true);
    const bool fresh = state().registered.emplace(reinterpret_cast<std::uintptr_t>(memory), len).second;
    return fresh ? SUCCESS : ALREADY_REGISTERED;
}

int cuMemHostUnregister(void *memory) {
    CALL("cuMemHostUnregister", true);
    return state().registered.erase(reinterpret_cast<std::uintptr_t>(memory)) == 1 ? SUCCESS : NOT_REGISTERED;
}

int cuModuleLoadData(void **module, const void *image) {
    CALL("cuModuleLoadData", true);
    const char *text = static_cast<const char *>(image);
    if (std::strstr(text, ".address_size 64") == nullptr) return INVALID_PTX;
    state().modules += 1;
    *module = const_cast<void *>(image);
    // The image may be gone after the call: what is in it is looked for here.
    for (const Kernel &kernel : KERNELS) {
        char entry[64];
        std::snprintf(entry, sizeof entry, ".entry %s(", kernel.name);
        if (std::strstr(text, entry) == nullptr) return INVALID_PTX;
    }
    return SUCCESS;
}

int cuModuleUnload(void *) {
    CALL("cuModuleUnload", true);
    state().modules -= 1;
    return SUCCESS;
}

int cuModuleGetFunction(const void **function, void *, const char *name) {
    CALL("cuModuleGetFunction", true);
    for (const Kernel &kernel : KERNELS) {
        if (std::strcmp(kernel.name, name) == 0) {
            *function = &kernel;
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int cuLaunchKernel(const void *function, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned, void *stream, void **params, void **) {
    CALL("cuLaunchKernel", true);
    if (grid == 0 || grid_y != 1 || grid_z != 1 || threads != THREADS || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (stream != STREAM) return INVALID_VALUE;
    const Kernel *kernel = static_cast<const Kernel *>(function);
    // The list itself; what it names was checked by whoever made it.
    if (!holds(word(params[0]), 1)) return ILLEGAL_ADDRESS;
    kernel->run(grid, params);
    state().launches += 1;
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    CALL("cuStreamCreate", true);
    state().streams += 1;
    *stream = STREAM;
    return SUCCESS;
}

int cuStreamSynchronize(void *) {
    CALL("cuStreamSynchronize", true);
    return SUCCESS;
}

int cuStreamDestroy_v2(void *) {
    CALL("cuStreamDestroy_v2", true);
    state().streams -= 1;
    return SUCCESS;
}

int cuFlushGPUDirectRDMAWrites(int, int) {
    CALL("cuFlushGPUDirectRDMAWrites", true);
    state().flushes += 1;
    return SUCCESS;
}

// For tests in the same process.

// The call of this name goes well `passes` times more, then is refused; with SUCCESS it is not.
void kvgate_refuse(const char *name, long passes, int refusal) {
    std::lock_guard alone(state().alone);
    state().refused = refusal == SUCCESS ? "" : name;
    state().passes = passes;
    state().refusal = refusal;
}

// From now on the host may touch device memory, as a NIC or another process may; and there are so many devices.
void kvgate_unguard(int devices) {
    std::lock_guard alone(state().alone);
    State &all = state();
    for (const auto &[address, allocation] : all.allocations) {
        mprotect(reinterpret_cast<void *>(address), allocation.mapped, PROT_READ | PROT_WRITE);
    }
    all.guarded = false;
    all.devices = devices;
}

// Whether it is device memory.
int kvgate_holds(std::uintptr_t address) {
    std::lock_guard alone(state().alone);
    return holds(address, 1) ? 1 : 0;
}

// What is alive: bytes allocated, ranges registered, modules, streams, contexts; and how often flushed and launched.
long kvgate_count(int which) {
    State &all = state();
    std::lock_guard alone(all.alone);
    switch (which) {
        case 0: {
            std::size_t bytes = 0;
            for (const auto &entry : all.allocations) bytes += entry.second.asked;
            return static_cast<long>(bytes);
        }
        case 1: return static_cast<long>(all.registered.size());
        case 2: return all.modules;
        case 3: return all.streams;
        case 4: return all.contexts;
        case 5: return all.flushes;
        case 6: return all.launches;
        default: return -1;
    }
}

}  // extern "C"
