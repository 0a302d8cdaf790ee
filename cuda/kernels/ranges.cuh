// Lists of work for a kernel: every entry is cut into pieces of the same size, and a block finds its piece by bisection.
#pragma once
#include "threads.cuh"

// The last entry whose first piece is not after `piece`. Entries are in order, and the first one begins with piece 0.
template <class Entry>
INLINE u64 entry_of(const Entry *entries, u64 count, u64 piece) {
    u64 low = 0, high = count;
    while (high - low > 1) {
        const u64 middle = low + (high - low) / 2;
        if (entries[middle].first_piece <= piece) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

INLINE u64 least(u64 a, u64 b) { return a < b ? a : b; }
