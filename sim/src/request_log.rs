//! The evidence log: one JSON line per request that reached an engine, written when the request has ended.

use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

/// The log, shared by all ranks; without a place to write to it takes lines and forgets them.
#[derive(Clone, Debug, Default)]
pub struct RequestLog(Option<Arc<dyn Lines>>);

/// Where lines go.
pub trait Lines: Debug + Send + Sync {
    /// Takes one line.
    fn write(&self, line: &Line<'_>);
}

#[derive(Debug)]
struct ToFile(Mutex<File>);

impl Lines for ToFile {
    fn write(&self, line: &Line<'_>) {
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.0.lock().write_all(&bytes)
        });
        if let Err(error) = written {
            tracing::error!(%error, "a request could not be logged");
        }
    }
}

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open the request log {path}")]
pub struct RequestLogError {
    /// Its path.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct Line<'a> {
    /// When it reached the engine, in microseconds since 1970.
    pub at_us: u64,
    /// The rank, in the deployment's numbering.
    pub dp_rank: u16,
    /// The engine's id.
    pub engine_id: &'a str,
    /// The engine's name for the request.
    pub request_id: &'a str,
    /// `prefill`, `decode` or `plain`.
    pub kind: &'static str,
    /// Where its KV was to come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_engine_id: Option<&'a str>,
    /// The remote engine's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_request_id: Option<&'a str>,
    /// `ok`, `aborted` or the kind of failure.
    pub outcome: &'static str,
    /// Bytes of pages that did not hold this prompt's KV when the text was made: reused, zeroed or corrupted ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused_bytes: Option<u64>,
}

impl RequestLog {
    /// Appends to `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, RequestLogError> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| RequestLogError { path: path.to_owned(), source })?;
        Ok(Self(Some(Arc::new(ToFile(Mutex::new(file))))))
    }

    /// Gives lines to whoever watches from inside the process.
    pub fn to(lines: Arc<dyn Lines>) -> Self {
        Self(Some(lines))
    }

    /// Writes one line, whole, before it returns.
    pub fn write(&self, line: &Line<'_>) {
        if let Some(lines) = &self.0 {
            lines.write(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_without_empty_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests.jsonl");
        let log = RequestLog::open(&path).unwrap();
        let line = Line {
            at_us: 5,
            dp_rank: 1,
            engine_id: "e",
            request_id: "r",
            kind: "plain",
            remote_engine_id: None,
            remote_request_id: None,
            outcome: "ok",
            reused_bytes: None,
        };
        log.write(&line);
        log.write(&line);
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = r#"{"at_us":5,"dp_rank":1,"engine_id":"e","request_id":"r","kind":"plain","outcome":"ok"}"#;
        assert_eq!(text, format!("{expected}\n{expected}\n"));
    }

    #[test]
    fn an_unwritable_path_is_named() {
        let error = RequestLog::open(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"));
    }
}
