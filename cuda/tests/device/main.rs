//! Device memory and kernels: on a GPU where there is one, else on the driver that stands in for it (`cuda-host`), which is said.
//!
//! `REQUIRE=gpu` makes a missing GPU a failure.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and says what it ran on"
)]

mod kernels;
mod memory;
mod trouble;

use cuda::Gpu;
use cuda_host::driver::{Count, HostDriver};
use parking_lot::{Mutex, MutexGuard};

/// What the tests run on, for one of them at a time.
pub(crate) struct Rig {
    pub(crate) gpu: Gpu,
    /// None on a GPU.
    pub(crate) host: Option<&'static HostDriver>,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    pub(crate) fn take() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock();
        let host = HostDriver::unless_gpu();
        Self { gpu: Gpu::open(0).unwrap(), host, _alone: alone }
    }

    pub(crate) fn count(&self, which: Count) -> Option<i64> {
        self.host.map(|host| host.count(which).unwrap())
    }
}

/// Bytes that differ everywhere, the same for the same seed.
pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let word = |at: u64| xxhash_rust::xxh64::xxh64(&at.to_le_bytes(), seed).to_le_bytes();
    (0..len.div_ceil(8) as u64).flat_map(word).take(len).collect()
}
