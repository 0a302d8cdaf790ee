//! NIXL's C ABI, loaded at run time (independent of NVIDIA's crate of the same name).
//!
//! Building this crate needs neither NIXL nor a C compiler nor libclang: [`Api::load`] finds `libnixl_capi.so` when the
//! program runs, and answers a [`LoadError`] that says where it looked when there is none.
//!
//! | module | holds |
//! |---|---|
//! | [`bindings`] | types and the function table as bindgen reads them from `include/nixl_capi.h` (checked in) |
//! | [`api`] | [`Api`]: the loaded library |
//! | [`load`] | where the library is looked for, and every way in which that fails |
//! | [`machine`] | what the transports need of this machine: CMA, plugins that open, a CUDA driver |
//! | [`status`] | [`RawStatus`] and its only readers |
//! | [`testing`] | the gate of tests that need the real library |
//! | [`ucx`] | what the UCX below NIXL says of this machine |
//!
//! Functions are fields: `(api.create_agent)(name, &mut agent)`. Each call is unsafe; what it promises and wants is in
//! the header. Ownership, threads and memory are the business of crate `nixl`.
#![allow(unsafe_code, reason = "FFI")]

#[macro_use]
mod table;

pub mod api;
#[rustfmt::skip]
#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "written by bindgen; documented in include/nixl_capi.h"
)]
pub mod bindings;
pub mod load;
pub mod machine;
pub mod status;
pub mod testing;
pub mod ucx;

pub use api::{Api, Origin};
pub use bindings::*;
pub use load::LoadError;
pub use status::{NixlError, Progress, RawStatus, StatusKind};
