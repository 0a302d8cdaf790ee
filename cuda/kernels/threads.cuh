// What differs between nvcc and a host compiler: how a kernel is declared, who runs it, and where its threads meet.
//
// A kernel is written as phases. Within a phase no thread sees what another one writes; between two phases all threads of the
// block meet. Only SHARED memory lives from one phase to the next, so that on a host a phase is a plain loop over the threads.
//
//     KERNEL twice(const u64 *in, u64 *out) {
//         SHARED u64 seen[THREADS];
//         EACH_THREAD(thread) { seen[thread] = in[thread]; } MEET
//         EACH_THREAD(thread) { out[thread] = seen[THREADS - 1 - thread]; } MEET
//     }
#pragma once

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
static_assert(sizeof(u64) == 8, "an address is a u64");

// Threads of every block of every kernel here.
#define THREADS 128u

#if defined(__CUDACC__)

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#define INLINE static __device__ __forceinline__
#define INLINE_MEMBER __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define EACH_THREAD(name) { const u32 name = threadIdx.x;
#define MEET } __syncthreads();
#define BLOCK (static_cast<u64>(blockIdx.x))

#else

// The block that runs on this thread of the host, and the order of its threads: order_step is odd and THREADS a power of two,
// so every thread has its turn. A kernel whose result depends on the order has a race.
struct Turn {
    u64 block;
    u32 order_first;
    u32 order_step;
};
inline thread_local Turn turn = {0, 0, 1};

#define KERNEL static void
#define INLINE static inline
#define INLINE_MEMBER inline
// One block at a time runs on a thread of the host.
#define SHARED static thread_local
#define UNROLL
#define EACH_THREAD(name) \
    for (u32 turn_of = 0; turn_of < THREADS; ++turn_of) { \
        const u32 name = (turn.order_first + turn_of * turn.order_step) % THREADS;
#define MEET }
#define BLOCK (turn.block)

#endif
