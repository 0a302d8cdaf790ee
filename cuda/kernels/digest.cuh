// Digests of pages: XXH64 of each 4 KiB chunk, then XXH64 of the chunks' digests in order (kv::digest::PageDigest).
//
// A page is `bytes` of KV: kernel blocks of `block_len` bytes, one every `stride` bytes. A chunk counts KV bytes, so it may
// reach over a gap of the stride.
#pragma once
#include "ranges.cuh"
#include "xxh64.cuh"

#define CHUNK 4096u
// Threads of one chunk: a lane each. Together they read whole 32-byte sectors.
#define LANES 4u
#define CHUNKS_PER_BLOCK (THREADS / LANES)

struct Page {
    u64 address;
    // Number of its first chunk among those of all pages.
    u64 first_piece;
    u64 bytes;
    u64 block_len;
    u64 stride;
};

// A chunk of a page.
struct Chunk {
    const Page *page;
    // Where it starts in the page, and its bytes.
    u64 offset;
    u64 len;
};

INLINE Chunk chunk_of(const Page *pages, u64 count, u64 number) {
    const Page *page = pages + entry_of(pages, count, number);
    const u64 offset = (number - page->first_piece) * CHUNK;
    return Chunk{page, offset, least(CHUNK, page->bytes - offset)};
}

INLINE u64 address_in(const Page &page, u64 offset) {
    // Without gaps, which is the usual case, without the divisions.
    if (page.block_len == page.stride) return page.address + offset;
    return page.address + offset / page.block_len * page.stride + offset % page.block_len;
}

INLINE u8 byte_at(u64 address) { return *reinterpret_cast<const u8 *>(address); }

// Whether the chunk's bytes lie together, on a boundary of 8 bytes.
INLINE bool is_plain(const Chunk &chunk) {
    const Page &page = *chunk.page;
    const bool together = page.block_len == page.stride || chunk.offset % page.block_len + chunk.len <= page.block_len;
    return together && address_in(page, chunk.offset) % 8 == 0;
}

// One lane of a chunk over all of its stripes.
INLINE u64 lane_of(const Chunk &chunk, u32 lane) {
    u64 state = lane_begin(lane);
    const u64 stripes = chunk.len / STRIPE;
    if (is_plain(chunk)) {
        const u64 *words = reinterpret_cast<const u64 *>(address_in(*chunk.page, chunk.offset)) + lane;
        u64 stripe = 0;
        // Sixteen loads at once: the multiplications wait for nothing but memory.
        for (; stripe + 16 <= stripes; stripe += 16) {
            u64 ahead[16];
            UNROLL for (u32 index = 0; index < 16; ++index) ahead[index] = words[(stripe + index) * LANES];
            UNROLL for (u32 index = 0; index < 16; ++index) state = lane_round(state, ahead[index]);
        }
        for (; stripe < stripes; ++stripe) state = lane_round(state, words[stripe * LANES]);
        return state;
    }
    for (u64 stripe = 0; stripe < stripes; ++stripe) {
        const u64 at = chunk.offset + stripe * STRIPE + lane * 8;
        u64 word = 0;
        for (u32 index = 0; index < 8; ++index) {
            word |= static_cast<u64>(byte_at(address_in(*chunk.page, at + index))) << (8 * index);
        }
        state = lane_round(state, word);
    }
    return state;
}

struct ChunkByte {
    const Chunk &chunk;
    INLINE_MEMBER u8 operator()(u64 offset) const { return byte_at(address_in(*chunk.page, chunk.offset + offset)); }
};

// Digests of all chunks of all pages. Blocks: ceil(chunks / CHUNKS_PER_BLOCK).
KERNEL digest_chunks(const Page *pages, u64 count, u64 chunks, u64 *digests) {
    SHARED u64 lanes[THREADS];
    EACH_THREAD(thread) {
        const u64 number = BLOCK * CHUNKS_PER_BLOCK + thread / LANES;
        if (number < chunks) lanes[thread] = lane_of(chunk_of(pages, count, number), thread % LANES);
    } MEET
    EACH_THREAD(thread) {
        const u64 number = BLOCK * CHUNKS_PER_BLOCK + thread;
        if (thread < CHUNKS_PER_BLOCK && number < chunks) {
            const Chunk chunk = chunk_of(pages, count, number);
            const u64 *of_chunk = lanes + thread * LANES;
            const u64 joined = chunk.len < STRIPE ? XXH_PRIME_5 : join_lanes(of_chunk[0], of_chunk[1], of_chunk[2], of_chunk[3]);
            digests[number] = finish(joined, chunk.len / STRIPE * STRIPE, chunk.len, ChunkByte{chunk});
        }
    } MEET
}

// A digest per page, from the digests of its chunks. Blocks: ceil(count / THREADS).
KERNEL fold_chunks(const Page *pages, u64 count, const u64 *chunks, u64 *digests) {
    EACH_THREAD(thread) {
        const u64 number = BLOCK * THREADS + thread;
        if (number < count) {
            const Page &page = pages[number];
            digests[number] = xxh64_of_words(chunks + page.first_piece, (page.bytes + CHUNK - 1) / CHUNK);
        }
    } MEET
}
