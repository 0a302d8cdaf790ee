// Zeroing of ranges, and copies between ranges: what brings blocks out of scattered slots into a contiguous range and back.
#pragma once
#include "ranges.cuh"

// Bytes that one block of threads moves.
#define PIECE 16384u

struct Range {
    u64 address;
    // Number of its first piece among those of all ranges.
    u64 first_piece;
    u64 bytes;
};

struct Copy {
    u64 from;
    u64 to;
    // Number of its first piece among those of all copies.
    u64 first_piece;
    u64 bytes;
};

struct alignas(16) Quad {
    u64 low;
    u64 high;
};

// Zeroes each range. Blocks: the pieces of all ranges.
KERNEL zero_ranges(const Range *ranges, u64 count, u64 pieces) {
    EACH_THREAD(thread) {
        if (BLOCK < pieces) {
            const Range &range = ranges[entry_of(ranges, count, BLOCK)];
            const u64 offset = (BLOCK - range.first_piece) * PIECE;
            const u64 first = range.address + offset;
            const u64 len = least(PIECE, range.bytes - offset);
            // Up to 15 bytes before the first boundary of 16, and after the last.
            const u64 before = least((16 - first % 16) % 16, len);
            const u64 quads = (len - before) / 16;
            for (u64 at = thread; at < before; at += THREADS) *reinterpret_cast<u8 *>(first + at) = 0;
            for (u64 at = thread; at < quads; at += THREADS) *reinterpret_cast<Quad *>(first + before + at * 16) = Quad{0, 0};
            for (u64 at = before + quads * 16 + thread; at < len; at += THREADS) *reinterpret_cast<u8 *>(first + at) = 0;
        }
    } MEET
}

// Carries out each copy; no byte that is read may be written by the same launch. Blocks: the pieces of all copies.
KERNEL copy_ranges(const Copy *copies, u64 count, u64 pieces) {
    EACH_THREAD(thread) {
        if (BLOCK < pieces) {
            const Copy &copy = copies[entry_of(copies, count, BLOCK)];
            const u64 offset = (BLOCK - copy.first_piece) * PIECE;
            const u64 from = copy.from + offset, to = copy.to + offset;
            const u64 len = least(PIECE, copy.bytes - offset);
            // Sixteen bytes at a time where both sides begin on such a boundary: PIECE keeps it from piece to piece.
            const u64 quads = (from | to) % 16 == 0 ? len / 16 : 0;
            for (u64 at = thread; at < quads; at += THREADS) {
                reinterpret_cast<Quad *>(to)[at] = reinterpret_cast<const Quad *>(from)[at];
            }
            for (u64 at = quads * 16 + thread; at < len; at += THREADS) {
                *reinterpret_cast<u8 *>(to + at) = *reinterpret_cast<const u8 *>(from + at);
            }
        }
    } MEET
}
