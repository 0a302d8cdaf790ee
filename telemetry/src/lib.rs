//! What router and sidecar tell monitoring in the same way.
//!
//! | module | is |
//! |---|---|
//! | [`exposition`] | a page of metrics in the format that was asked for |
//! | [`mod@trace`] | W3C trace context, spans, and the queue to whoever exports them |
//! | `otlp` | the exporter, with the feature of that name |
//! | [`log_filter`] | changing what is logged while the process runs |
#![forbid(unsafe_code)]

pub mod exposition;
pub mod log_filter;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod trace;

/// What a process is given by whoever started it to be observed by.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What it logs.
    pub log_filter: log_filter::LogFilter,
    /// Where its spans go.
    pub spans: trace::Spans,
}

impl From<log_filter::LogFilter> for Observed {
    /// Without traces.
    fn from(log_filter: log_filter::LogFilter) -> Self {
        Self { log_filter, spans: trace::Spans::default() }
    }
}
