//! Traces without a cost where they are off: spans are made of what is known when the work has ended, and handed to a bounded queue.
//!
//! A [`Context`] is W3C's `traceparent`. [`Spans`] is what a process has: nothing, or the way to an exporter. Router and sidecar keep
//! times of everything anyway, so nothing is opened or entered while a request is worked on; only ids have to be known early,
//! because they are sent along.

mod context;
mod counts;
mod queue;
mod span;

pub use context::Context;
pub use counts::{Counts, Lost};
pub use queue::{Received, Spans, channel};
pub use span::{Kind, Span, Value};
