// Runs kernels on the host: block after block, within a block phase after phase, thread after thread.
#pragma once
#include "digest.cuh"
#include "move.cuh"

namespace kvgate::host {

// Every block once; `step` (odd) and `first` say in which order its threads have their turns, and odd `first`s run the blocks backwards.
template <class Kernel>
void for_each_block(u64 blocks, u32 first, u32 step, const Kernel &kernel) {
    for (u64 index = 0; index < blocks; ++index) {
        turn = Turn{first % 2 == 0 ? index : blocks - 1 - index, first, step | 1};
        kernel();
    }
}

}  // namespace kvgate::host
