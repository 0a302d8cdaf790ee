//! What router and sidecar know by files that others must not know, or not change: bearer tokens, certificates and their keys.
//!
//! Every such file is looked at while the process runs, and what it says holds within [`IN_FORCE`] after it was changed. What is open by then
//! goes on: a connection keeps the certificates of its handshake, a request that was admitted is answered.
#![forbid(unsafe_code)]

mod follow;
pub mod tls;
mod token;

pub use follow::{Followed, IN_FORCE, follow};
pub use token::{MAX_TOKENS, TokenError, Tokens};
