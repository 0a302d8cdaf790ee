//! Changing what is logged while the process runs.
//!
//! The subscriber belongs to whoever made the process; this is the handle on it that the HTTP API gets.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

/// Longer filters are refused. Bytes.
const MAX_FILTER: usize = 1024;

/// Why a filter was not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LogFilterError {
    /// It cannot be read as directives.
    #[error("is no log filter, as in `info,sidecar=debug`: {0}")]
    Unreadable(String),
    /// It is too long.
    #[error("may have at most {MAX_FILTER} bytes")]
    TooLong,
    /// The subscriber has gone.
    #[error("this process does not log any more")]
    Gone,
}

type Set = dyn Fn(&str) -> Result<(), LogFilterError> + Send + Sync;

/// The handle. Clones change the same filter.
#[derive(Clone)]
pub struct LogFilter {
    current: Arc<Mutex<String>>,
    set: Arc<Set>,
}

impl LogFilter {
    /// A filter that is `current` now and changed by `set`.
    pub fn new(
        current: impl Into<String>,
        set: impl Fn(&str) -> Result<(), LogFilterError> + Send + Sync + 'static,
    ) -> Self {
        Self { current: Arc::new(Mutex::new(current.into())), set: Arc::new(set) }
    }

    /// The filter in effect, as it was given.
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Changes it.
    ///
    /// # Errors
    /// [`LogFilterError`]; the old one stays in effect then.
    pub fn change(&self, filter: &str) -> Result<(), LogFilterError> {
        if filter.len() > MAX_FILTER {
            return Err(LogFilterError::TooLong);
        }
        // Held over the change, so that what is shown last is what was set last.
        let mut current = self.current.lock();
        (self.set)(filter)?;
        filter.clone_into(&mut current);
        Ok(())
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFilter").field("current", &*self.current.lock()).finish_non_exhaustive()
    }
}
