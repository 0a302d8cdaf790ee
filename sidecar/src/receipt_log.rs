//! Receipts on record: one JSON line each, in the file before the receipt is answered. A transfer that ends otherwise in the very moment in
//! which its line is written gets a second line, the same with `"withdrawn": true`.
//!
//! Joined with the decode engines' own request logs, the file shows whether a decode ever ran without a receipt.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use crate::model::{Landed, ReceiptSink, Recorded};

/// An open log; lines of concurrent receipts never mix.
#[derive(Debug)]
pub struct ReceiptLog {
    file: Arc<Mutex<File>>,
}

#[derive(Serialize)]
struct Line<'a> {
    at_us: u64,
    transfer_id: &'a str,
    attempt_id: &'a str,
    dp_rank: u16,
    virtual_engine_id: &'a str,
    request_id: &'a str,
    blocks: u32,
    bytes: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    withdrawn: bool,
}

impl ReceiptLog {
    /// Opens the file to append to it, and makes it when it is not there.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file: Arc::new(Mutex::new(file)) })
    }

    /// Writing waits for the disk: on a thread of its own.
    fn write(&self, landed: Arc<Landed>, withdrawn: bool) -> Recorded {
        let file = Arc::clone(&self.file);
        let writing = tokio::task::spawn_blocking(move || append(&file, &landed, withdrawn));
        Box::pin(async move { writing.await.unwrap_or_else(|ended| Err(io::Error::other(ended))) })
    }
}

impl ReceiptSink for ReceiptLog {
    fn record(&self, landed: Arc<Landed>) -> Recorded {
        self.write(landed, false)
    }

    fn withdraw(&self, landed: Arc<Landed>) -> Recorded {
        self.write(landed, true)
    }

    fn keeps(&self) -> bool {
        true
    }
}

fn append(file: &Mutex<File>, landed: &Landed, withdrawn: bool) -> io::Result<()> {
    let receipt = &landed.receipt;
    let line = Line {
        at_us: unix_micros(),
        transfer_id: landed.transfer.as_str(),
        attempt_id: landed.attempt.as_str(),
        dp_rank: receipt.dp_rank.0,
        virtual_engine_id: receipt.virtual_engine_id.as_str(),
        request_id: receipt.request_id.as_str(),
        blocks: receipt.blocks,
        bytes: receipt.bytes,
        withdrawn,
    };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    // One write per line: a reader sees whole lines, also after a crash of this process.
    let mut file = file.lock();
    file.write_all(&text)?;
    file.flush()
}

/// The wall clock, for records that are compared with other processes' records. Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the wall clock")]
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
