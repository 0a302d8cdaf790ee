// What the driver that stands in for libcuda.so.1 knows: devices, allocations, whose context is current.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace kvgate::driver {

// CUresult's numbers, as far as they are answered here.
enum Status : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
};

constexpr int MOST_DEVICES = 8;

struct Allocation {
    std::size_t asked;
    std::size_t mapped;
    int device;
};

struct State {
    std::mutex alone;
    bool initialised = false;
    int devices = 1;
    int version = 13000;
    int capability = 90;
    std::size_t total = std::size_t{1} << 30;
    // Whether the host is kept from touching device memory between calls.
    bool guarded = true;
    // cuInit's answer.
    int init = SUCCESS;
    // The call that is refused, how often it still goes well, and how it is refused.
    std::string refused;
    long passes = 0;
    int refusal = SUCCESS;
    std::size_t used[MOST_DEVICES] = {};
    std::map<std::uintptr_t, Allocation> allocations;
    std::map<std::uintptr_t, std::size_t> registered;
    long modules = 0, streams = 0, contexts = 0, flushes = 0, launches = 0;
};

State &state();

// The device whose context is current on this thread, or -1.
extern thread_local int current;

// Holds the state for one call, lets the call touch device memory, and says how the call is answered before it begins.
class Call {
public:
    explicit Call(const char *name, bool needs_context = true);
    ~Call();
    Call(const Call &) = delete;
    Call &operator=(const Call &) = delete;
    // How the call is refused, or SUCCESS.
    int refused = SUCCESS;

private:
    std::unique_lock<std::mutex> alone;
};

// Whether one allocation holds the range.
bool holds(std::uintptr_t address, std::size_t len);

}  // namespace kvgate::driver
