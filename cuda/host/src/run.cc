#include "cuda-host/src/run.h"
#include "blocks.h"
#include "cuda-host/src/lib.rs.h"

namespace kvgate::host {

namespace {

template <class Entry>
const Entry *entries(rust::Slice<const std::uint64_t> words) {
    return reinterpret_cast<const Entry *>(words.data());
}

template <class Entry>
u64 count(rust::Slice<const std::uint64_t> words) {
    return words.size() * sizeof(u64) / sizeof(Entry);
}

}  // namespace

void digest_chunks(rust::Slice<const std::uint64_t> pages, std::uint64_t blocks, rust::Slice<std::uint64_t> digests, Order order) {
    for_each_block(blocks, order.first, order.step, [&] {
        ::digest_chunks(entries<Page>(pages), count<Page>(pages), digests.size(), digests.data());
    });
}

void fold_chunks(rust::Slice<const std::uint64_t> pages, std::uint64_t blocks, rust::Slice<const std::uint64_t> chunks,
                 rust::Slice<std::uint64_t> digests, Order order) {
    for_each_block(blocks, order.first, order.step, [&] {
        ::fold_chunks(entries<Page>(pages), count<Page>(pages), chunks.data(), digests.data());
    });
}

void zero_ranges(rust::Slice<const std::uint64_t> ranges, std::uint64_t pieces, Order order) {
    for_each_block(pieces, order.first, order.step, [&] { ::zero_ranges(entries<Range>(ranges), count<Range>(ranges), pieces); });
}

void copy_ranges(rust::Slice<const std::uint64_t> copies, std::uint64_t pieces, Order order) {
    for_each_block(pieces, order.first, order.step, [&] { ::copy_ranges(entries<Copy>(copies), count<Copy>(copies), pieces); });
}

}  // namespace kvgate::host
