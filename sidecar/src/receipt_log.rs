//! Receipts on record: one JSON line each, in the file before the receipt is answered. A transfer that ends otherwise in the very moment in
//! which its line is written gets a second line, the same with `"withdrawn": true`.
//!
//! A disk that is full for a while costs no line: what it does not take is kept and written, in order, within a second of there being room.
//! Each such line is reported as an error at once. Beyond 4096 lines the oldest are lost, and all of them if the process is killed first.
//!
//! Joined with the decode engines' own request logs, the file shows whether a decode ever ran without a receipt.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use crate::model::{Landed, ReceiptSink, Recorded};

/// Lines that are kept for a disk that takes none: about 1.5 MB.
const KEPT: usize = 4096;
/// How often a disk that took none is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// An open log; lines of concurrent receipts never mix.
#[derive(Debug)]
pub struct ReceiptLog {
    lines: Arc<Mutex<Lines<File>>>,
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
        let mut lines = Lines::new(file);
        if is_torn(path) {
            lines.end_line();
        }
        Ok(Self { lines: Arc::new(Mutex::new(lines)) })
    }

    /// Writing waits for the disk: on a thread of its own.
    fn write(&self, landed: Arc<Landed>, withdrawn: bool) -> Recorded {
        let lines = Arc::clone(&self.lines);
        let writing = tokio::task::spawn_blocking(move || {
            let line = line(&landed, withdrawn)?;
            let added = lines.lock().add(line);
            if added.is_err() {
                keep_trying(&lines);
            }
            added
        });
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

/// Lines on their way to a file.
#[derive(Debug)]
struct Lines<W> {
    to: W,
    waiting: VecDeque<Vec<u8>>,
    /// Bytes of the first waiting line that are in the file already: a disk with little room takes a part.
    written: usize,
    /// A thread tries to write them.
    is_tried: bool,
}

impl<W: Write> Lines<W> {
    fn new(to: W) -> Self {
        Self { to, waiting: VecDeque::new(), written: 0, is_tried: false }
    }

    /// Ends a line that a killed process has left unfinished.
    fn end_line(&mut self) {
        self.waiting.push_back(b"\n".to_vec());
    }

    /// Writes a line after those that wait. On an error it is kept.
    fn add(&mut self, line: Vec<u8>) -> io::Result<()> {
        if self.waiting.len() == KEPT {
            // The first may be half written.
            drop(self.waiting.remove(1));
        }
        self.waiting.push_back(line);
        self.write_waiting()
    }

    fn write_waiting(&mut self) -> io::Result<()> {
        while let Some(line) = self.waiting.front() {
            // One write per line: a reader sees whole lines, also after a crash of this process.
            while let Some(rest @ [_, ..]) = line.get(self.written..) {
                match self.to.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(taken) => self.written += taken,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.waiting.pop_front();
            self.written = 0;
        }
        self.to.flush()
    }
}

/// Tries again and again until the disk has taken what waits, or the log is gone. On a thread of its own, which may wait for the disk and
/// keeps no process from ending.
fn keep_trying<W: Write + Send + 'static>(lines: &Arc<Mutex<Lines<W>>>) {
    if std::mem::replace(&mut lines.lock().is_tried, true) {
        return;
    }
    let weak = Arc::downgrade(lines);
    let trying = move || {
        while let Some(lines) = weak.upgrade() {
            let mut lines = lines.lock();
            if lines.write_waiting().is_ok() {
                lines.is_tried = false;
                return;
            }
            drop(lines);
            std::thread::sleep(TRY_AGAIN);
        }
    };
    let started = std::thread::Builder::new().name("receipt-log".to_owned()).spawn(trying);
    if started.is_err() {
        // The next receipt tries.
        lines.lock().is_tried = false;
    }
}

/// Whether the file's last line has no end.
fn is_torn(path: &Path) -> bool {
    let mut last = [b'\n'];
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)
    });
    // An empty file has no byte before its end.
    read.is_ok() && last != [b'\n']
}

fn line(landed: &Landed, withdrawn: bool) -> io::Result<Vec<u8>> {
    let receipt = &landed.receipt;
    let mut text = serde_json::to_vec(&Line {
        at_us: unix_micros(),
        transfer_id: landed.transfer.as_str(),
        attempt_id: landed.attempt.as_str(),
        dp_rank: receipt.dp_rank.0,
        virtual_engine_id: receipt.virtual_engine_id.as_str(),
        request_id: receipt.request_id.as_str(),
        blocks: receipt.blocks,
        bytes: receipt.bytes,
        withdrawn,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// The wall clock, for records that are compared with other processes' records. Microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads the wall clock")]
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room.
    #[derive(Debug)]
    struct Disk {
        room: usize,
        text: String,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.text.push_str(&String::from_utf8_lossy(&bytes[..taken]));
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn on_disk(room: usize) -> Lines<Disk> {
        Lines::new(Disk { room, text: String::new() })
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_written_whole_and_in_order_once_it_does() {
        let mut lines = on_disk(7);
        lines.add(b"one\n".to_vec()).unwrap();
        assert_eq!(lines.add(b"two, torn\n".to_vec()).unwrap_err().kind(), io::ErrorKind::StorageFull);
        lines.add(b"three\n".to_vec()).unwrap_err();
        assert_eq!(lines.to.text, "one\ntwo");
        lines.to.room = 1000;
        lines.add(b"four\n".to_vec()).unwrap();
        assert_eq!(lines.to.text, "one\ntwo, torn\nthree\nfour\n");
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_written_without_a_further_receipt() {
        let lines = Arc::new(Mutex::new(on_disk(0)));
        lines.lock().add(b"one\n".to_vec()).unwrap_err();
        keep_trying(&lines);
        keep_trying(&lines);
        lines.lock().to.room = 1000;
        while lines.lock().is_tried {
            std::thread::yield_now();
        }
        assert_eq!(lines.lock().to.text, "one\n");
    }

    #[test]
    fn what_is_kept_for_a_full_disk_is_bounded_and_no_line_is_torn() {
        let mut lines = on_disk(2);
        for number in 0..KEPT + 10 {
            lines.add(format!("line {number}\n").into_bytes()).unwrap_err();
            assert!(lines.waiting.len() <= KEPT);
        }
        lines.to.room = usize::MAX;
        lines.add(b"the last\n".to_vec()).unwrap();
        let written: Vec<_> = lines.to.text.lines().collect();
        assert_eq!(written[..2], ["line 0", "line 12"], "the first was half written, and 11 after it had no room");
        assert_eq!(written.len(), KEPT);
    }

    #[test]
    fn a_line_that_a_killed_process_left_unfinished_is_ended_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("receipts.jsonl");
        assert!(!is_torn(&path), "there is no file yet");
        std::fs::write(&path, "{\"at_us\":1}\n{\"at").unwrap();
        let log = ReceiptLog::open(&path).unwrap();
        log.lines.lock().add(b"{\"at_us\":2}\n".to_vec()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"at_us\":1}\n{\"at\n{\"at_us\":2}\n");
        assert!(!is_torn(&path));
    }
}
