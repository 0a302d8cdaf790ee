//! The CUDA kernels compiled for the host: the very source that nvcc compiles, behind a thin layer of macros (`kernels/threads.cuh`).
//!
//! For tests on machines without a GPU. A launch takes what it takes on the device: a list of work as words (`cuda`'s `list`), with
//! addresses of this process in it. [`driver`] is a library in the place of `libcuda.so.1` that launches them.
#![allow(unsafe_code, reason = "calls C++, which follows addresses")]
#![allow(
    missing_docs,
    unused_qualifications,
    clippy::missing_safety_doc,
    reason = "cxx repeats the bridge's items without their docs, by their full names"
)]

pub mod driver;

pub use ffi::{Order, copy_ranges, digest_chunks, fold_chunks, zero_ranges};

#[cxx::bridge(namespace = "kvgate::host")]
mod ffi {
    /// In which order the threads of a block have their turns within a phase: `first`, `first + step`, … modulo the block's threads.
    /// `step` is taken as odd, so that every thread has its turn; with an odd `first` the blocks run backwards too. A result that
    /// depends on it is a race.
    #[derive(Clone, Copy, Debug)]
    struct Order {
        first: u32,
        step: u32,
    }

    unsafe extern "C++" {
        include!("cuda-host/src/run.h");

        /// Digests of all chunks of all pages, one word each.
        ///
        /// # Safety
        /// Every page of the list lies in memory that may be read, and their chunks are as many as `digests`.
        unsafe fn digest_chunks(pages: &[u64], blocks: u64, digests: &mut [u64], order: Order);

        /// A digest per page from those of its chunks.
        ///
        /// # Safety
        /// The list's pages are as many as `digests`, and their chunks as many as `chunks`.
        unsafe fn fold_chunks(pages: &[u64], blocks: u64, chunks: &[u64], digests: &mut [u64], order: Order);

        /// Zeroes ranges.
        ///
        /// # Safety
        /// Every range of the list lies in memory that may be written and that nobody else uses.
        unsafe fn zero_ranges(ranges: &[u64], pieces: u64, order: Order);

        /// Copies ranges.
        ///
        /// # Safety
        /// Every copy of the list reads memory that may be read and writes memory that may be written and that nobody else uses; no byte
        /// is both.
        unsafe fn copy_ranges(copies: &[u64], pieces: u64, order: Order);
    }
}
