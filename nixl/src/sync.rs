//! What threads share memory by. Files that name these through here are also built over `loom` in `tests/models`, which tries every order.

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
