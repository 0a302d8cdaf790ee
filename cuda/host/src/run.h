// The kernels as functions that Rust calls.
#pragma once
#include "rust/cxx.h"
#include <cstdint>

namespace kvgate::host {

struct Order;

void digest_chunks(rust::Slice<const std::uint64_t> pages, std::uint64_t blocks, rust::Slice<std::uint64_t> digests, Order order);
void fold_chunks(rust::Slice<const std::uint64_t> pages, std::uint64_t blocks, rust::Slice<const std::uint64_t> chunks,
                 rust::Slice<std::uint64_t> digests, Order order);
void zero_ranges(rust::Slice<const std::uint64_t> ranges, std::uint64_t pieces, Order order);
void copy_ranges(rust::Slice<const std::uint64_t> copies, std::uint64_t pieces, Order order);

}  // namespace kvgate::host
