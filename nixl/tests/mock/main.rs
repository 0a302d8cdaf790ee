//! The agent on a mock of `libnixl_capi.so` (C, beside this file) that is slow, late and wrong on demand, and that counts live
//! handles and misuses.
#![allow(unsafe_code, reason = "the mock is steered through functions of its library")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod device;
mod library;
mod limits;
mod states;
