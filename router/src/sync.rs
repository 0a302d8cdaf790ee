//! What threads share memory by. Files that name these through here are also built over `loom` in `tests/models`, which tries every order.

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

pub(crate) use futures_util::task::AtomicWaker;
pub(crate) use parking_lot::Mutex;
