//! How an agent is set up.

use std::time::Duration;

use cuda::{CudaError, Gpu};

use crate::{error::NixlError, fabric::Attention, name::AgentName};

/// What one agent is made of. Sync mode is always `RW`: `NONE` crashes with two threads (nixl-ffi.md §1.4).
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// What peers call it.
    pub name: AgentName,
    /// NIXL's own progress thread.
    pub progress: Progress,
    /// How soon notifications are noticed; none: only while something else goes on.
    pub attention: Option<Attention>,
    /// The plugin that moves the bytes.
    pub backend: String,
    /// Parameters of the plugin, e.g. `ucx_error_handling_mode` = `none`; unnamed ones keep the plugin's defaults.
    pub backend_params: Vec<(String, String)>,
    /// The GPU whose context is the current one of the agent's thread: needed for memory on a GPU, of whichever side.
    pub gpu: Option<Gpu>,
    /// Commands that may wait; one more is answered [`Busy`](crate::FabricError::Busy).
    pub max_queued: usize,
    /// Reads that may be in flight; one more is answered [`Busy`](crate::FabricError::Busy).
    pub max_in_flight: usize,
    /// Notifications that may wait in the stream.
    pub max_notifications: usize,
}

/// Whether NIXL runs a thread of its own that answers peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// None: our polling does it. The fastest and cheapest for an agent that starts all transfers itself.
    Off,
    /// Event driven, and at least this often.
    Every(ProgressInterval),
}

/// At least 1 ms: NIXL's default of 0 burns a whole core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProgressInterval(Duration);

/// An interval below 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a progress interval must be at least 1 ms, not {0:?}")]
pub struct IntervalTooShort(pub Duration);

impl ProgressInterval {
    /// 10 ms: 0.3 % of a core while idle.
    pub const RELAXED: Self = Self(Duration::from_millis(10));

    /// Checks an interval.
    ///
    /// # Errors
    /// Below 1 ms.
    pub fn new(interval: Duration) -> Result<Self, IntervalTooShort> {
        if interval < Duration::from_millis(1) { Err(IntervalTooShort(interval)) } else { Ok(Self(interval)) }
    }

    /// The interval.
    #[must_use]
    pub fn get(self) -> Duration {
        self.0
    }
}

impl AgentConfig {
    /// An agent that reads from peers: no progress thread, polled while anything is in flight, parked otherwise.
    #[must_use]
    pub fn pull(name: AgentName) -> Self {
        Self {
            name,
            progress: Progress::Off,
            attention: None,
            backend: "UCX".to_owned(),
            backend_params: Vec::new(),
            gpu: None,
            max_queued: 1024,
            max_in_flight: 1024,
            max_notifications: 4096,
        }
    }

    /// An agent that peers read from: event-driven progress thread, notifications noticed within 20 ms.
    #[must_use]
    pub fn serve(name: AgentName) -> Self {
        Self {
            progress: Progress::Every(ProgressInterval::RELAXED),
            attention: Some(Attention::Idle),
            ..Self::pull(name)
        }
    }
}

/// Why an agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The C API takes no NUL in strings.
    #[error("backend parameter {key:?} or its value contains NUL")]
    Parameter {
        /// Its name.
        key: String,
    },
    /// The backend's plugin is not there; a wrong `NIXL_PLUGIN_DIR` is the usual cause.
    #[error("NIXL has no plugin {wanted:?}, only {available:?}: check NIXL_PLUGIN_DIR, or leave it unset")]
    NoPlugin {
        /// What was asked for.
        wanted: String,
        /// What is there.
        available: Vec<String>,
    },
    /// The plugin is there and could not be set up. With `UCX_TLS` set it needs `tcp`, or `ucx_error_handling_mode` = `none`.
    #[error(
        "set up NIXL backend {backend:?}: its cause is on stderr (NIXL_LOG_LEVEL=INFO says more); UCX_TLS, if set, needs tcp in it"
    )]
    Backend {
        /// The plugin.
        backend: String,
        /// What NIXL answered.
        #[source]
        source: NixlError,
    },
    /// The GPU's context cannot be made current.
    #[error("make the GPU's context current for NIXL agent {name}")]
    Gpu {
        /// The agent's name.
        name: AgentName,
        /// What the driver says.
        #[source]
        source: CudaError,
    },
    /// NIXL refused the agent.
    #[error("make NIXL agent {name}")]
    Create {
        /// The agent's name.
        name: AgentName,
        /// What NIXL answered.
        #[source]
        source: NixlError,
    },
    /// The operating system gave no thread.
    #[error("start the agent's thread")]
    Thread(#[source] std::io::Error),
    /// NIXL did not come back.
    #[error("NIXL has not made the agent within {0:?}")]
    Slow(Duration),
    /// The thread ended while it was being set up.
    #[error("the agent's thread died while it started")]
    Died,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spinning_progress_thread_cannot_be_written() {
        assert!(ProgressInterval::new(Duration::ZERO).is_err());
        assert!(ProgressInterval::new(Duration::from_micros(999)).is_err());
        assert!(ProgressInterval::new(Duration::from_millis(1)).is_ok());
    }
}
