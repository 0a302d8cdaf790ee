// XXH64 with seed 0, as in the xxHash specification: four lanes that each take every fourth 8-byte word, then a tail.
#pragma once
#include "threads.cuh"

#define XXH_PRIME_1 0x9E3779B185EBCA87ull
#define XXH_PRIME_2 0xC2B2AE3D27D4EB4Full
#define XXH_PRIME_3 0x165667B19E3779F9ull
#define XXH_PRIME_4 0x85EBCA77C2B2AE63ull
#define XXH_PRIME_5 0x27D4EB2F165667C5ull

// Bytes that the four lanes take in one round.
#define STRIPE 32u

INLINE u64 rotate_left(u64 word, u32 bits) { return (word << bits) | (word >> (64u - bits)); }

// What lane 0..3 begins with.
INLINE u64 lane_begin(u32 lane) {
    return lane == 0 ? XXH_PRIME_1 + XXH_PRIME_2 : lane == 1 ? XXH_PRIME_2 : lane == 2 ? 0 : 0 - XXH_PRIME_1;
}

INLINE u64 lane_round(u64 lane, u64 word) { return rotate_left(lane + word * XXH_PRIME_2, 31) * XXH_PRIME_1; }

INLINE u64 merge_lane(u64 hash, u64 lane) { return (hash ^ lane_round(0, lane)) * XXH_PRIME_1 + XXH_PRIME_4; }

// The four lanes as one word; only for input of at least a stripe.
INLINE u64 join_lanes(u64 a, u64 b, u64 c, u64 d) {
    u64 hash = rotate_left(a, 1) + rotate_left(b, 7) + rotate_left(c, 12) + rotate_left(d, 18);
    return merge_lane(merge_lane(merge_lane(merge_lane(hash, a), b), c), d);
}

INLINE u64 take_word(u64 hash, u64 word) {
    return rotate_left(hash ^ lane_round(0, word), 27) * XXH_PRIME_1 + XXH_PRIME_4;
}

INLINE u64 take_half(u64 hash, u32 half) {
    return rotate_left(hash ^ (half * XXH_PRIME_1), 23) * XXH_PRIME_2 + XXH_PRIME_3;
}

INLINE u64 take_byte(u64 hash, u8 byte) { return rotate_left(hash ^ (byte * XXH_PRIME_5), 11) * XXH_PRIME_1; }

INLINE u64 avalanche(u64 hash) {
    hash = (hash ^ (hash >> 33)) * XXH_PRIME_2;
    hash = (hash ^ (hash >> 29)) * XXH_PRIME_3;
    return hash ^ (hash >> 32);
}

// Adds what is left after the stripes, and ends. `hash` is join_lanes(..), or XXH_PRIME_5 for input shorter than a stripe;
// `byte(offset)` gives the input's bytes from `at` (a multiple of STRIPE) to `len`.
template <class Byte>
INLINE u64 finish(u64 hash, u64 at, u64 len, const Byte &byte) {
    hash += len;
    for (; at + 8 <= len; at += 8) {
        u64 word = 0;
        for (u32 index = 0; index < 8; ++index) word |= static_cast<u64>(byte(at + index)) << (8 * index);
        hash = take_word(hash, word);
    }
    if (at + 4 <= len) {
        u32 half = 0;
        for (u32 index = 0; index < 4; ++index) half |= static_cast<u32>(byte(at + index)) << (8 * index);
        hash = take_half(hash, half);
        at += 4;
    }
    for (; at < len; ++at) hash = take_byte(hash, byte(at));
    return avalanche(hash);
}

// XXH64 of whole 8-byte words by one thread.
INLINE u64 xxh64_of_words(const u64 *words, u64 count) {
    u64 hash = XXH_PRIME_5;
    u64 at = 0;
    if (count >= 4) {
        u64 a = lane_begin(0), b = lane_begin(1), c = lane_begin(2), d = lane_begin(3);
        for (; at + 4 <= count; at += 4) {
            a = lane_round(a, words[at]);
            b = lane_round(b, words[at + 1]);
            c = lane_round(c, words[at + 2]);
            d = lane_round(d, words[at + 3]);
        }
        hash = join_lanes(a, b, c, d);
    }
    hash += 8 * count;
    for (; at < count; ++at) hash = take_word(hash, words[at]);
    return avalanche(hash);
}
