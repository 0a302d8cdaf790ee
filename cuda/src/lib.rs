//! GPU memory for staging, and the kernels that digest, zero and move blocks in it.
//!
//! | module | is |
//! |---|---|
//! | [`list`] | lists of work, as a launch takes them: checked, and cut into pieces |
//!
//! The kernels are in `kernels/*.cuh`. `make kernels` compiles them to `kernels/kernels.ptx`, which is checked in; `host/` compiles the
//! same source for the host, and the tests here compare it with `xxhash-rust` and plain Rust.

pub mod list;

/// What the driver compiles for the device it finds: PTX for compute capability 8.0 and upwards.
pub const PTX: &str = include_str!("../kernels/kernels.ptx");
