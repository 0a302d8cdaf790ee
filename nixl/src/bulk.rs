//! Work over the bytes of memory: filling, comparing, zeroing.

use tokio::task::{JoinError, spawn_blocking};

/// What is done in place: memory traffic that takes less time than a thread takes to be woken and to answer.
const IN_PLACE: u64 = 256 << 10;

/// Does work that touches so many bytes: a few in place, more on a worker thread, where it keeps no other task waiting.
///
/// # Errors
/// When the worker's runtime is shutting down, or the work has panicked there.
pub async fn over<T: Send + 'static>(bytes: u64, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if bytes <= IN_PLACE { Ok(work()) } else { spawn_blocking(work).await }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[tokio::test]
    async fn only_much_work_goes_to_another_thread() {
        let here = current().id();
        assert_eq!(over(IN_PLACE, || current().id()).await.expect("done"), here);
        assert_ne!(over(IN_PLACE + 1, || current().id()).await.expect("done"), here);
    }
}
