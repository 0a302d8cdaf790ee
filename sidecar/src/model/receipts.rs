//! Receipts on record.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::Landed;

/// A record being made, also when this is dropped.
pub type Recorded = BoxFuture<'static, io::Result<()>>;

/// Where receipts are put on record before they are answered.
pub trait ReceiptSink: Debug + Send + Sync + 'static {
    /// Writes one receipt.
    ///
    /// # Errors
    /// Whatever the file said; the receipt is given all the same, and the error logged.
    fn record(&self, landed: Arc<Landed>) -> Recorded;

    /// Writes that a receipt that was put on record has not been given: its transfer ended otherwise in that moment.
    ///
    /// # Errors
    /// Whatever the file said; it is logged.
    fn withdraw(&self, landed: Arc<Landed>) -> Recorded;

    /// Whether [`Self::record`] does anything: where it does not, no task is made for it.
    fn keeps(&self) -> bool;
}

/// A sink that keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReceiptSink;

impl ReceiptSink for NoReceiptSink {
    fn record(&self, _landed: Arc<Landed>) -> Recorded {
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, _landed: Arc<Landed>) -> Recorded {
        Box::pin(async { Ok(()) })
    }

    fn keeps(&self) -> bool {
        false
    }
}
