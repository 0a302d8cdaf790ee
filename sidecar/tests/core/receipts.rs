//! Receipts on record, in memory.

use std::sync::Arc;

use kv::ids::TransferId;
use parking_lot::Mutex;
use sidecar::model::{Landed, ReceiptSink, Recorded};

/// Receipts in the order of their recording.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    pub(crate) given: Mutex<Vec<Landed>>,
    pub(crate) withdrawn: Mutex<Vec<TransferId>>,
    /// The next receipt is recorded when the other end says so, or is gone.
    pub(crate) hold: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl ReceiptSink for Receipts {
    fn record(&self, landed: Arc<Landed>) -> Recorded {
        self.given.lock().push(Landed::clone(&landed));
        let hold = self.hold.lock().take();
        Box::pin(async {
            if let Some(hold) = hold {
                tokio::task::spawn_blocking(move || hold.recv().unwrap_or(())).await.unwrap();
            }
            Ok(())
        })
    }

    fn withdraw(&self, landed: Arc<Landed>) -> Recorded {
        self.withdrawn.lock().push(landed.transfer.clone());
        Box::pin(async { Ok(()) })
    }

    fn keeps(&self) -> bool {
        true
    }
}
