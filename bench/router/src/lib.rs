//! What the load generators of the benches share: one kept connection, the little of HTTP/1.1 that is read on it, and when requests go out.
#![forbid(unsafe_code)]

pub mod connection;
pub mod message;
pub mod pace;
