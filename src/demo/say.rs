//! What the demo prints. A closed pipe must not end it before it has ended its children.

use std::io::{IsTerminal, Write, stdout};

/// One finished line.
pub(super) fn line(text: &str) {
    let mut out = stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// What is being done right now: overwritten on a terminal, a line of its own in a log.
pub(super) fn progress(text: &str) {
    let mut out = stdout().lock();
    let written = if out.is_terminal() { write!(out, "\r\x1b[K{text}") } else { writeln!(out, "{text}") };
    drop(written.and_then(|()| out.flush()));
}

/// Wipes the progress line of a terminal.
pub(super) fn end_progress() {
    let mut out = stdout().lock();
    if out.is_terminal() {
        drop(write!(out, "\r\x1b[K").and_then(|()| out.flush()));
    }
}
