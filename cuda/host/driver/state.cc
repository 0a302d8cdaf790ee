#include "state.h"
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

namespace kvgate::driver {

thread_local int current = -1;

namespace {

// KVGATE_HOST_CUDA, for processes that a test starts: "devices=2,bytes=1073741824,version=12000,capability=80,guarded=0,init=100".
void read_settings(State &state) {
    const char *text = std::getenv("KVGATE_HOST_CUDA");
    if (text == nullptr) return;
    std::string settings = text;
    for (std::size_t at = 0; at < settings.size();) {
        const std::size_t end = std::min(settings.find(',', at), settings.size());
        const std::string setting = settings.substr(at, end - at);
        const std::size_t equals = setting.find('=');
        if (equals == std::string::npos) std::abort();
        const std::string key = setting.substr(0, equals);
        const long value = std::strtol(setting.c_str() + equals + 1, nullptr, 10);
        if (key == "devices") state.devices = static_cast<int>(std::min<long>(value, MOST_DEVICES));
        else if (key == "bytes") state.total = static_cast<std::size_t>(value);
        else if (key == "version") state.version = static_cast<int>(value);
        else if (key == "capability") state.capability = static_cast<int>(value);
        else if (key == "guarded") state.guarded = value != 0;
        else if (key == "init") state.init = static_cast<int>(value);
        else std::abort();
        at = end + 1;
    }
}

void protect(State &state, int rights) {
    if (!state.guarded) return;
    for (const auto &[address, allocation] : state.allocations) {
        if (mprotect(reinterpret_cast<void *>(address), allocation.mapped, rights) != 0) std::abort();
    }
}

}  // namespace

State &state() {
    // Never destroyed: other threads may be in a call when the process ends.
    static State *state = [] {
        State *made = new State;
        read_settings(*made);
        return made;
    }();
    return *state;
}

Call::Call(const char *name, bool needs_context) : alone(state().alone) {
    State &all = state();
    if (!all.initialised) {
        refused = NOT_INITIALIZED;
    } else if (needs_context && current < 0) {
        refused = INVALID_CONTEXT;
    } else if (all.refused == name && all.passes-- <= 0) {
        refused = all.refusal;
    }
    protect(all, PROT_READ | PROT_WRITE);
}

Call::~Call() { protect(state(), PROT_NONE); }

bool holds(std::uintptr_t address, std::size_t len) {
    const auto &all = state().allocations;
    auto after = all.upper_bound(address);
    if (after == all.begin()) return false;
    const auto &[base, allocation] = *--after;
    return address - base <= allocation.asked && len <= allocation.asked - (address - base);
}

}  // namespace kvgate::driver
