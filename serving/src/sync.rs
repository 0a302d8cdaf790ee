//! What threads share memory by. Files that name these through here are also built over `loom` in `tests/models`, which tries every order.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
