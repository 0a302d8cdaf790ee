//! What the fakes must have got of a body.

#![expect(clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};

use crate::edits::{Fate, at_d, at_p, compare};

/// What P must have got.
pub(crate) fn check_prefill(path: &str, sent: &[u8], got: &[u8]) {
    let params = at_p(path, sent, got).unwrap_or_else(|why| panic!("{why}{}", context(sent, got)));
    assert_eq!(params["do_remote_decode"], json!(true));
    assert_eq!(params["do_remote_prefill"], json!(false));
    assert_eq!(params["remote_host"], Value::Null, "the client's parameters are not P's");
}

/// What D must have got of a split request.
pub(crate) fn check_decode(sent: &[u8], got: &[u8]) {
    let params = at_d(sent, got).unwrap_or_else(|why| panic!("{why}{}", context(sent, got)));
    assert!(params["remote_engine_id"].as_str().unwrap().starts_with("virtual_"), "{params}");
}

/// What D must have got of a request that it serves alone.
pub(crate) fn check_alone(sent: &[u8], got: &[u8]) {
    let fate = |name: &str| if name == "kv_transfer_params" { Fate::Gone } else { Fate::Kept };
    let params = compare(sent, got, &[], fate).unwrap_or_else(|why| panic!("{why}{}", context(sent, got)));
    assert!(params.is_none());
}

fn context(sent: &[u8], got: &[u8]) -> String {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
    format!("\n  sent {}\n   got {}", shown(sent), shown(got))
}
