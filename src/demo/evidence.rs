//! Whether any decode came without a receipt, from what the engines and the sidecars wrote down, not from the router.
//!
//! A decode counts as covered only when a receipt names its virtual request, its rank, and an earlier moment.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A line of the decode engines' request log.
#[derive(Debug, Deserialize)]
struct EngineRequest {
    at_us: u64,
    dp_rank: u16,
    kind: String,
    remote_engine_id: Option<String>,
    remote_request_id: Option<String>,
}

/// A line of a sidecar's receipt log.
#[derive(Debug, Deserialize)]
struct ReceiptLine {
    at_us: u64,
    dp_rank: u16,
    virtual_engine_id: String,
    request_id: String,
    bytes: u64,
    /// A second line for a receipt that was not given after all.
    #[serde(default)]
    withdrawn: bool,
}

/// What the logs say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// Decodes that asked for remote KV.
    pub(super) decodes: usize,
    /// Those that no receipt covers.
    pub(super) without_receipt: usize,
    /// Receipts given.
    pub(super) receipts: usize,
    /// Bytes that all receipts vouch for, moved from P into staging.
    pub(super) bytes_moved: u64,
}

/// Joins both logs.
pub(super) fn join(request_log: &Path, receipt_log: &Path) -> Result<Evidence> {
    let (requests, receipts) = (lines::<EngineRequest>(request_log)?, lines::<ReceiptLine>(receipt_log)?);
    Ok(judge(&requests, &receipts))
}

fn judge(requests: &[EngineRequest], receipts: &[ReceiptLine]) -> Evidence {
    let mut by_request = BTreeMap::new();
    for line in receipts {
        let key = (line.virtual_engine_id.as_str(), line.request_id.as_str());
        if line.withdrawn {
            by_request.remove(&key);
        } else {
            by_request.insert(key, line);
        }
    }
    let mut evidence = Evidence {
        receipts: by_request.len(),
        bytes_moved: by_request.values().map(|line| line.bytes).sum(),
        ..Evidence::default()
    };
    for request in requests.iter().filter(|request| request.kind == "decode") {
        evidence.decodes += 1;
        let key = (request.remote_engine_id.as_deref(), request.remote_request_id.as_deref());
        let receipt = match key {
            (Some(engine), Some(id)) => by_request.get(&(engine, id)),
            (None, _) | (_, None) => None,
        };
        let covered = receipt.is_some_and(|line| line.dp_rank == request.dp_rank && line.at_us <= request.at_us);
        evidence.without_receipt += usize::from(!covered);
    }
    evidence
}

/// A missing file is an empty log: nothing has been written yet.
fn lines<T: DeserializeOwned>(file: &Path) -> Result<Vec<T>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("read a line of {}", file.display())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(at_us: u64, dp_rank: u16, engine: &str, id: &str) -> EngineRequest {
        EngineRequest {
            at_us,
            dp_rank,
            kind: "decode".to_owned(),
            remote_engine_id: Some(engine.to_owned()),
            remote_request_id: Some(id.to_owned()),
        }
    }

    fn receipt(at_us: u64, dp_rank: u16) -> ReceiptLine {
        let (virtual_engine_id, request_id) = ("v".to_owned(), "r".to_owned());
        ReceiptLine { at_us, dp_rank, virtual_engine_id, request_id, bytes: 10, withdrawn: false }
    }

    #[test]
    fn only_an_earlier_receipt_for_that_request_and_rank_covers_a_decode() {
        let check = |request: EngineRequest, expect| {
            assert_eq!(judge(&[request], &[receipt(5, 1)]).without_receipt, expect);
        };
        check(decode(6, 1, "v", "r"), 0);
        check(decode(4, 1, "v", "r"), 1);
        check(decode(6, 0, "v", "r"), 1);
        check(decode(6, 1, "other", "r"), 1);
        check(decode(6, 1, "v", "other"), 1);
        check(EngineRequest { remote_request_id: None, ..decode(6, 1, "v", "r") }, 1);
    }

    #[test]
    fn a_receipt_that_was_withdrawn_covers_nothing() {
        let withdrawn = ReceiptLine { withdrawn: true, ..receipt(5, 1) };
        let evidence = judge(&[decode(6, 1, "v", "r")], &[receipt(5, 1), withdrawn]);
        assert_eq!(evidence, Evidence { decodes: 1, without_receipt: 1, receipts: 0, bytes_moved: 0 });
    }

    #[test]
    fn prefills_and_plain_requests_need_none() {
        let plain = EngineRequest { kind: "plain".to_owned(), ..decode(6, 1, "v", "r") };
        let evidence = judge(&[plain], &[receipt(5, 1), ReceiptLine { request_id: "s".to_owned(), ..receipt(5, 1) }]);
        assert_eq!(evidence, Evidence { decodes: 0, without_receipt: 0, receipts: 2, bytes_moved: 20 });
    }
}
