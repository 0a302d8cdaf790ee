//! Receipts on record.

use std::fmt::Debug;
use std::io;

use super::Landed;

/// Where receipts are put on record before they are answered.
pub trait ReceiptSink: Debug + Send + Sync + 'static {
    /// Writes one receipt. Runs on a blocking thread.
    ///
    /// # Errors
    /// Whatever the file said; the receipt is given all the same, and the error logged.
    fn record(&self, landed: &Landed) -> io::Result<()>;

    /// Writes that a receipt that was put on record has not been given: its transfer ended otherwise in that moment. Runs on a blocking thread.
    ///
    /// # Errors
    /// Whatever the file said; it is logged.
    fn withdraw(&self, landed: &Landed) -> io::Result<()>;

    /// Whether [`Self::record`] does anything: where it does not, no thread is asked for it.
    fn keeps(&self) -> bool;
}

/// A sink that keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReceiptSink;

impl ReceiptSink for NoReceiptSink {
    fn record(&self, _landed: &Landed) -> io::Result<()> {
        Ok(())
    }

    fn withdraw(&self, _landed: &Landed) -> io::Result<()> {
        Ok(())
    }

    fn keeps(&self) -> bool {
        false
    }
}
