//! GPU memory for staging, and the kernels that digest, zero and move blocks in it.
//!
//! | module | is |
//! |---|---|
//! | [`mod@driver`] | the CUDA driver, absent or present: looked for at run time |
//! | [`gpu`] | one device: its memory, its context, its kernels |
//! | [`memory`] | plain device allocations |
//! | [`pinned`] | host memory that is page-locked for the device |
//! | [`list`] | lists of work, as a launch takes them: checked, and cut into pieces |
//! | [`error`] | what can go wrong, in words that say what to do |
//!
//! The kernels are in `kernels/*.cuh`. `make kernels` compiles them to `kernels/kernels.ptx`, which is checked in; `host/` compiles the
//! same source for the host, and the tests here compare it with `xxhash-rust` and plain Rust.
//!
//! Everything here blocks for as long as the device takes: for worker threads only.

pub mod driver;
pub mod error;
pub mod gpu;
mod kernels;
pub mod list;
pub mod memory;
pub mod pinned;

pub use driver::driver;
pub use error::CudaError;
pub use gpu::{Free, Gpu};
pub use list::{ListError, Page};
pub use memory::DeviceMemory;
pub use pinned::Pinned;

/// What the driver compiles for the device it finds: PTX for compute capability 8.0 and upwards.
pub const PTX: &str = include_str!("../kernels/kernels.ptx");
