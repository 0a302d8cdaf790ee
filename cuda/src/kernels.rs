//! The kernels of one device, and how they are launched.
#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::{CString, c_void};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, result, sys};

use crate::PTX;
use crate::error::{CudaError, of};
use crate::list::{self, Extent, List, Move, THREADS};

/// Loaded kernels with a stream of their own. The device's context must be current for every call, and is at its end made so.
pub(crate) struct Launcher {
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    module: sys::CUmodule,
    digest_chunks: sys::CUfunction,
    fold_chunks: sys::CUfunction,
    zero_ranges: sys::CUfunction,
    copy_ranges: sys::CUfunction,
    /// Device memory for lists and results; grows.
    scratch: Scratch,
}

// SAFETY: the handles are the driver's and may be used by any thread, one at a time, whose current context is theirs.
unsafe impl Send for Launcher {}

#[derive(Default)]
struct Scratch {
    address: u64,
    len: usize,
}

impl Launcher {
    pub(crate) fn load(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        // The text has no NUL, so the default is never taken.
        let text = CString::new(PTX).unwrap_or_default();
        // SAFETY: the text is a C string that lives through the call; the context is current.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let module = of("cuModuleLoadData", module)?;
        let mut launcher = Self {
            context: Arc::clone(context),
            stream: std::ptr::null_mut(),
            module,
            digest_chunks: std::ptr::null_mut(),
            fold_chunks: std::ptr::null_mut(),
            zero_ranges: std::ptr::null_mut(),
            copy_ranges: std::ptr::null_mut(),
            scratch: Scratch::default(),
        };
        launcher.stream = of("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        launcher.digest_chunks = launcher.function(c"digest_chunks")?;
        launcher.fold_chunks = launcher.function(c"fold_chunks")?;
        launcher.zero_ranges = launcher.function(c"zero_ranges")?;
        launcher.copy_ranges = launcher.function(c"copy_ranges")?;
        Ok(launcher)
    }

    fn function(&self, name: &std::ffi::CStr) -> Result<sys::CUfunction, CudaError> {
        // SAFETY: the module is loaded, and stays so until `self` is dropped.
        of("cuModuleGetFunction", unsafe { result::module::get_function(self.module, name.to_owned()) })
    }

    /// Digests of all chunks of a list of pages; and of the pages, when `fold` is set.
    pub(crate) fn digest(&mut self, pages: &List, fold: bool) -> Result<Vec<u64>, CudaError> {
        if pages.count == 0 || (pages.pieces == 0 && !fold) {
            return Ok(Vec::new());
        }
        let list = self.upload(&pages.words, results(pages, fold))?;
        let (chunks, digests) = self.launch_digests(pages, list, fold)?;
        if fold { self.download(digests, pages.count) } else { self.download(chunks, pages.pieces) }
    }

    /// How long the digests of pages take on the device, from the first launch to the end of the last, without list and results on their way.
    #[expect(clippy::disallowed_methods, reason = "what is measured is real time")]
    pub(crate) fn time_digest(&mut self, pages: &List) -> Result<Duration, CudaError> {
        let list = self.upload(&pages.words, results(pages, true))?;
        self.wait()?;
        let begun = Instant::now();
        self.launch_digests(pages, list, true)?;
        self.wait()?;
        Ok(begun.elapsed())
    }

    /// Where the chunks' digests will be, and behind them those of the pages.
    fn launch_digests(&mut self, pages: &List, list: u64, fold: bool) -> Result<(u64, u64), CudaError> {
        let chunks = list.saturating_add(bytes(pages.words.len() as u64));
        let digests = chunks.saturating_add(bytes(pages.pieces));
        let mut count = pages.count;
        if pages.pieces > 0 {
            let mut pieces = pages.pieces;
            let (mut list, mut chunks) = (list, chunks);
            let mut params = [param(&mut list), param(&mut count), param(&mut pieces), param(&mut chunks)];
            self.launch(self.digest_chunks, pages.chunk_blocks(), &mut params)?;
        }
        if fold {
            let (mut list, mut chunks, mut folded) = (list, chunks, digests);
            let mut params = [param(&mut list), param(&mut count), param(&mut chunks), param(&mut folded)];
            self.launch(self.fold_chunks, pages.entry_blocks(), &mut params)?;
        }
        Ok((chunks, digests))
    }

    /// Zeroes a list of ranges.
    pub(crate) fn zero(&mut self, ranges: &List) -> Result<(), CudaError> {
        self.pieces(self.zero_ranges, ranges)
    }

    /// Copies ranges of `memory` into the scratch, one after the other, and from there to the host.
    pub(crate) fn gather(&mut self, memory: Extent, ranges: &[Range<u64>], out: &mut [u8]) -> Result<(), CudaError> {
        let Some(contiguous) = self.beside(ranges, out.len())? else { return Ok(()) };
        let moves = list::moves(memory, contiguous, &side_by_side(ranges, false))?;
        self.pieces(self.copy_ranges, &moves)?;
        // SAFETY: the scratch holds so many bytes there; `out` outlives the copy, which is waited for below.
        let copied = unsafe { result::memcpy_dtoh_async(out, contiguous.base, self.stream) };
        let waited = self.wait();
        of("cuMemcpyDtoHAsync", copied)?;
        waited
    }

    /// Copies bytes from the host into the scratch, and from there into ranges of `memory`.
    pub(crate) fn scatter(&mut self, memory: Extent, ranges: &[Range<u64>], bytes: &[u8]) -> Result<(), CudaError> {
        let Some(contiguous) = self.beside(ranges, bytes.len())? else { return Ok(()) };
        let moves = list::moves(contiguous, memory, &side_by_side(ranges, true))?;
        // SAFETY: the scratch holds so many bytes there; `bytes` outlives the copy, because no call returns before the stream was
        // waited for.
        let copied = unsafe { result::memcpy_htod_async(contiguous.base, bytes, self.stream) };
        self.settled(of("cuMemcpyHtoDAsync", copied))?;
        self.pieces(self.copy_ranges, &moves)
    }

    fn pieces(&mut self, kernel: sys::CUfunction, list: &List) -> Result<(), CudaError> {
        if list.pieces == 0 {
            return Ok(());
        }
        let mut address = self.upload(&list.words, 0)?;
        let (mut count, mut pieces) = (list.count, list.pieces);
        let mut params = [param(&mut address), param(&mut count), param(&mut pieces)];
        self.launch(kernel, list.pieces, &mut params)?;
        self.wait()
    }

    /// Room in the scratch for `len` bytes behind a list of so many copies; none when there is nothing to copy.
    fn beside(&mut self, ranges: &[Range<u64>], len: usize) -> Result<Option<Extent>, CudaError> {
        if len == 0 {
            return Ok(None);
        }
        let list = bytes((ranges.len() as u64).saturating_mul(4)).next_multiple_of(256);
        let len = len as u64;
        self.reserve(list.saturating_add(len))?;
        Ok(Some(Extent { base: self.scratch.address.saturating_add(list), len }))
    }

    /// Brings a list to the device, with room for `results` words behind it.
    fn upload(&mut self, words: &[u64], results: u64) -> Result<u64, CudaError> {
        self.reserve(bytes((words.len() as u64).saturating_add(results)))?;
        // SAFETY: the scratch holds the words; `words` outlives the copy, because no call returns before the stream was waited for.
        let copied = unsafe { result::memcpy_htod_async(self.scratch.address, words, self.stream) };
        self.settled(of("cuMemcpyHtoDAsync", copied))?;
        Ok(self.scratch.address)
    }

    /// Makes the scratch that large; what was in it is lost when it grows.
    fn reserve(&mut self, needed: u64) -> Result<(), CudaError> {
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        if self.scratch.len >= needed {
            return Ok(());
        }
        self.free_scratch()?;
        // To a power of two, so that it grows a few times only.
        let len = needed.checked_next_power_of_two().unwrap_or(needed).max(1 << 16);
        // SAFETY: the context is current; the memory is this value's until `free_scratch`.
        let address = unsafe { result::malloc_sync(len) };
        self.scratch = Scratch { address: of("cuMemAlloc", address)?, len };
        Ok(())
    }

    fn launch(&self, kernel: sys::CUfunction, blocks: u64, params: &mut [*mut c_void]) -> Result<(), CudaError> {
        // A list has no more blocks than a launch takes.
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        // SAFETY: the kernel is of the loaded module and takes these parameters; the list that it reads is in the scratch, and every
        // range of it was checked against memory that its caller holds; the call copies the parameters.
        let launched =
            unsafe { result::launch_kernel(kernel, (blocks, 1, 1), (THREADS, 1, 1), 0, self.stream, params) };
        self.settled(of("cuLaunchKernel", launched))
    }

    fn download(&self, address: u64, count: u64) -> Result<Vec<u64>, CudaError> {
        let mut words = vec![0_u64; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the scratch holds `count` words from `address` on; `words` outlives the copy, which is waited for below.
        let copied = unsafe { result::memcpy_dtoh_async(&mut words, address, self.stream) };
        let waited = self.wait();
        of("cuMemcpyDtoHAsync", copied)?;
        waited.map(|()| words)
    }

    /// After a refusal nothing of what was asked before may still go on.
    fn settled(&self, answer: Result<(), CudaError>) -> Result<(), CudaError> {
        if answer.is_err() {
            let _lost = self.wait();
        }
        answer
    }

    fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is this value's.
        of("cuStreamSynchronize", unsafe { result::stream::synchronize(self.stream) })
    }

    fn free_scratch(&mut self) -> Result<(), CudaError> {
        let old = std::mem::take(&mut self.scratch);
        if old.len == 0 {
            return Ok(());
        }
        // SAFETY: allocated by `upload`, freed once; every launch that used it was waited for.
        of("cuMemFree", unsafe { result::free_sync(old.address) })
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Nothing can be done about a refusal: the context is lost then, and its memory with it.
        let _current = self.context.bind_to_thread();
        let _freed = self.free_scratch();
        if !self.stream.is_null() {
            // SAFETY: made by `load`, destroyed once; everything on it was waited for.
            let _destroyed = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: loaded by `load`, unloaded once; no kernel of it runs.
        let _unloaded = unsafe { result::module::unload(self.module) };
    }
}

/// Words behind a list of pages: a digest of each chunk, and of each page.
fn results(pages: &List, fold: bool) -> u64 {
    pages.pieces.saturating_add(if fold { pages.count } else { 0 })
}

/// Copies between ranges and a contiguous range, in order.
fn side_by_side(ranges: &[Range<u64>], scatter: bool) -> Vec<Move> {
    let mut at: u64 = 0;
    let of = |range: &Range<u64>| {
        let bytes = range.end.saturating_sub(range.start);
        let contiguous = at;
        at = at.saturating_add(bytes);
        let (from, to) = if scatter { (contiguous, range.start) } else { (range.start, contiguous) };
        Move { from, to, bytes }
    };
    ranges.iter().map(of).collect()
}

fn param(value: &mut u64) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

fn bytes(words: u64) -> u64 {
    words.saturating_mul(8)
}
