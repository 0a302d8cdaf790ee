//! What is shown of each transfer, while it runs and for some time after.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kv::ids::TransferId;
use telemetry::trace::Spans;
use tokio::sync::watch;
use tokio::time::Instant;

use super::board::{Board, Shown};
use crate::model::{Landed, TransferError, TransferSnapshot};
use crate::spans;

/// Ended transfers that are kept per rank.
const KEEP: usize = 1024;

/// How a transfer ended for those who wait.
pub(crate) type Outcome = Result<Arc<Landed>, TransferError>;

/// One transfer's record.
#[derive(Debug)]
struct Record {
    shown: Shown,
    outcome: Option<Outcome>,
    cell: watch::Sender<Arc<Shown>>,
}

/// The records of one rank.
#[derive(Debug)]
pub(crate) struct Records {
    board: Arc<Board>,
    spans: Spans,
    records: BTreeMap<TransferId, Record>,
    ended: VecDeque<TransferId>,
}

impl Records {
    /// No record yet.
    pub(crate) fn new(board: Arc<Board>, spans: Spans) -> Self {
        Self { board, spans, records: BTreeMap::new(), ended: VecDeque::new() }
    }

    /// Opens a record.
    pub(crate) fn open(&mut self, snapshot: TransferSnapshot) {
        let transfer = snapshot.transfer.clone();
        let shown = Shown { snapshot, landed: None };
        let cell = self.board.show(shown.clone());
        self.records.insert(transfer, Record { shown, outcome: None, cell });
    }

    /// A transfer as shown.
    pub(crate) fn get(&self, transfer: &TransferId) -> Option<&TransferSnapshot> {
        self.records.get(transfer).map(|record| &record.shown.snapshot)
    }

    /// How it ended for those who wait, once it has.
    pub(crate) fn outcome(&self, transfer: &TransferId) -> Option<&Outcome> {
        self.records.get(transfer)?.outcome.as_ref()
    }

    /// Changes what is shown.
    pub(crate) fn change(&mut self, transfer: &TransferId, change: impl FnOnce(&mut TransferSnapshot)) {
        if let Some(record) = self.records.get_mut(transfer) {
            change(&mut record.shown.snapshot);
            record.cell.send_replace(Arc::new(record.shown.clone()));
        }
    }

    /// Notes the outcome; shown with the next change.
    pub(crate) fn decide(&mut self, transfer: &TransferId, outcome: Outcome) {
        if let Some(record) = self.records.get_mut(transfer) {
            record.shown.landed = outcome.as_ref().ok().cloned();
            if outcome.is_err() {
                // P has not been told, so another attempt may read the same blocks.
                let shown = &record.shown.snapshot;
                self.board.free_source(&shown.source_engine, &shown.source_request, transfer);
            }
            record.outcome = Some(outcome);
        }
    }

    /// Nothing will change any more: the record is kept until enough others have ended.
    pub(crate) fn end(&mut self, transfer: &TransferId) {
        if let Some(shown) = self.get(transfer).filter(|shown| self.spans.are_on() && shown.trace.is_some()) {
            self.spans.send(spans::of(shown, Instant::now()));
        }
        self.ended.push_back(transfer.clone());
        while self.ended.len() > KEEP {
            let Some(oldest) = self.ended.pop_front() else { return };
            if let Some(record) = self.records.remove(&oldest) {
                let shown = &record.shown.snapshot;
                self.board.free_attempt(&shown.attempt, &oldest);
                self.board.outlive(&shown.source_engine, &shown.source_request, &oldest);
                self.board.forget(&oldest);
            }
        }
    }
}
