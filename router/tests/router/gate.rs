//! Invariant G: a decode reaches a rank only after, and with, the receipt for that rank and that request.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::json;

use crate::engines::ANSWER;
use crate::journal::{Event, Journal};
use crate::sidecars::Transfers;
use crate::world::{Setup, World};

/// Every decode used one receipt, given before, for its rank; no receipt was used twice. Returns the number of decodes.
pub(crate) fn check_gate(journal: &Journal) -> usize {
    let mut open = BTreeSet::new();
    let mut decodes = 0;
    for event in journal.events() {
        match event {
            Event::Receipt { rank, request } => assert!(open.insert((rank, request))),
            Event::Decode { rank, request, .. } => {
                let used = (rank.unwrap(), request.unwrap_or_else(|| panic!("a decode without parameters")));
                assert!(open.remove(&used), "decode without a receipt: {used:?}");
                decodes += 1;
            }
            Event::Prefill { .. }
            | Event::Other { .. }
            | Event::DecodeCancelled
            | Event::PrefillCancelled
            | Event::Asked { .. }
            | Event::Claimed { .. }
            | Event::Finished { .. }
            | Event::Reported { .. }
            | Event::Released { .. }
            | Event::Forgotten { .. } => {}
        }
    }
    decodes
}

#[tokio::test]
async fn one_request_goes_from_prefill_over_its_receipt_to_the_same_rank() {
    let world = World::new(Setup::default()).await;
    let body = r#"{"model":"m","prompt":"p","max_tokens":5}"#;
    let answer = world.post("/v1/completions", body, &[("x-request-id", "client,1")]).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, ANSWER.as_bytes()));
    assert_eq!(answer.header("x-request-id"), "client,1");
    assert_eq!(answer.header("x-kvgate-path"), "pd");
    assert_eq!(answer.header("x-kvgate-prefill-rank"), answer.header("x-kvgate-decode-rank"));
    assert!(answer.header("x-kvgate-transfer").starts_with("t-test-1-1"));
    assert!(answer.header("x-kvgate-prefill-ms").parse::<f64>().unwrap() > 0.0);
    assert_eq!(check_gate(&world.journal), 1);

    let asked = world.journal.asked().remove(0);
    assert_eq!(asked["request_id"], "client,1", "the label is the client's");
    assert_eq!(asked["lease_ms"], 30_000);
    assert_eq!(asked["kv_transfer_params"]["something_new"], 0.1, "P's unknown fields go on");
    assert!(asked["prefill_done_age_ms"].as_u64().unwrap() < 5_000);
    assert!(asked["source_sidecar"].as_str().is_some_and(|uri| uri.starts_with("http://")), "whom D's sidecar may ask");
    let finished =
        |event: &Event| matches!(event, Event::Finished { transfer } if transfer == answer.header("x-kvgate-transfer"));
    world.journal.wait_for("the transfer's end", 1, finished).await;
    let reported = |event: &Event| {
        matches!(event, Event::Reported { body } if body["kv_transfer_params"] == asked["kv_transfer_params"]
            && body["dp_rank"].as_u64() == answer.header("x-kvgate-prefill-rank").parse().ok() && body["age_ms"].is_u64())
    };
    world.journal.wait_for("the handle's report", 1, reported).await;
    world
        .journal
        .wait_for(
            "P's sidecar forgets what was read",
            1,
            |event| matches!(event, Event::Forgotten { request, rank: 0 } if request.starts_with("cmpl-test-1")),
        )
        .await;
    assert_eq!(world.journal.count(|event| matches!(event, Event::Released { .. })), 0, "P was told by the transfer");
    for event in world.journal.events() {
        if let Event::Prefill { headers, .. } | Event::Decode { headers, .. } = event {
            assert_eq!(headers["x-request-id"], "test-1-1", "engines see the router's own id");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_concurrent_requests_over_eight_ranks_all_wait_for_their_receipts() {
    let world = World::new(Setup { ranks: 8, args: "--max-in-flight 64", ..Setup::default() }).await;
    let body = |n: usize| format!(r#"{{"prompt":"p{n}","stream":{}}}"#, n.is_multiple_of(2));
    let all: Vec<_> = (0..200).map(|n| world.start(body(n))).collect();
    let mut ranks = BTreeSet::new();
    for answer in all {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
        assert_eq!(answer.header("x-kvgate-prefill-rank"), answer.header("x-kvgate-decode-rank"));
        ranks.insert(answer.header("x-kvgate-decode-rank").to_owned());
    }
    assert_eq!(ranks.len(), 8, "all ranks share the work");
    assert_eq!(check_gate(&world.journal), 200);
    world.journal.wait_for("the transfers' ends", 200, |event| matches!(event, Event::Finished { .. })).await;
}

#[tokio::test]
async fn blocks_that_are_read_before_anybody_could_look_are_not_reported() {
    let world = World::new(Setup { args: "--report-handles-after-ms 60000", ..Setup::default() }).await;
    assert_eq!(world.complete(r#"{"prompt":"p"}"#).await.status, 200);
    world.journal.wait_for("the transfer's end", 1, |event| matches!(event, Event::Finished { .. })).await;
    let told = |event: &Event| matches!(event, Event::Reported { .. } | Event::Forgotten { .. });
    assert_eq!(world.journal.count(told), 0);
}

#[tokio::test]
async fn a_receipt_for_another_rank_is_refused_and_nothing_is_decoded() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().next(Transfers::WrongReceipt);
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "receipt_invalid"));
    assert_eq!(world.journal.count(|event| matches!(event, Event::Decode { .. })), 0);
    world.journal.wait_for("the transfer's end", 1, |event| matches!(event, Event::Finished { .. })).await;
}

#[tokio::test]
async fn fault_wrong_rank_is_refused_by_the_ticket() {
    let world = World::new(Setup { args: "--fault wrong-rank", ..Setup::default() }).await;
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "receipt_rank_mismatch"));
    assert_eq!(world.journal.count(|event| matches!(event, Event::Decode { .. })), 0);
}

#[tokio::test]
async fn fault_skip_gate_decodes_with_the_prefill_engines_own_parameters() {
    let world = World::new(Setup { args: "--fault skip-gate", ..Setup::default() }).await;
    world.decode_sidecar().next(Transfers::Hangs);
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!(answer.status.as_u16(), 200);
    let own = |event: &Event| matches!(event, Event::Decode { request: Some(id), .. } if id.starts_with("cmpl-test-1"));
    assert_eq!(world.journal.count(own), 1);
    assert_eq!(world.journal.count(|event| matches!(event, Event::Receipt { .. })), 0);
}

#[tokio::test]
async fn fault_delay_decode_keeps_the_claim_alive_meanwhile() {
    let setup = Setup { args: "--fault delay-decode=300", collect_by_ms: 90, ..Setup::default() };
    let world = World::new(setup).await;
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!(answer.status.as_u16(), 200);
    let events = world.journal.events();
    let decode = events.iter().position(|event| matches!(event, Event::Decode { .. })).unwrap();
    let claims = events
        .iter()
        .take(decode)
        .filter(|event| matches!(event, Event::Claimed { transfer } if transfer == answer.header("x-kvgate-transfer")))
        .count();
    assert!(claims >= 2, "{claims} claims in 300 ms at 30 ms each");
    check_gate(&world.journal);
}

#[tokio::test]
async fn fault_delay_decode_holds_the_direct_gate_too() {
    let world = World::new(Setup { args: "--gate direct --fault delay-decode=300", ..Setup::default() }).await;
    let begun = tokio::time::Instant::now();
    assert_eq!(world.complete(r#"{"prompt":"p"}"#).await.status.as_u16(), 200);
    assert!(begun.elapsed() >= std::time::Duration::from_millis(300));
}

#[tokio::test]
async fn the_direct_gate_sends_the_parameters_on_and_speaks_to_no_sidecar() {
    let world = World::new(Setup { args: "--gate direct", ..Setup::default() }).await;
    let answer = world.complete(r#"{"prompt":"p"}"#).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path")), (200, "direct"));
    let own = |event: &Event| matches!(event, Event::Decode { request: Some(id), .. } if id.starts_with("cmpl-test-1"));
    assert_eq!(world.journal.count(own), 1);
    assert_eq!(world.journal.events().len(), 2, "{:?}", world.journal.events());
}

#[tokio::test]
async fn a_text_chat_decodes_the_tokens_that_were_prefilled() {
    let world = World::new(Setup::default()).await;
    let body = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(world.post("/v1/chat/completions", body, &[]).await.status.as_u16(), 200);
    let prefill: serde_json::Value = serde_json::from_slice(&world.journal.bodies(false)[0]).unwrap();
    assert_eq!(prefill["return_token_ids"], true);
    let decode: serde_json::Value = serde_json::from_slice(&world.journal.bodies(true)[0]).unwrap();
    assert_eq!(decode["kv_transfer_params"]["prompt_token_ids"], json!([7, 8, 9]));
    assert_eq!(decode.get("return_token_ids"), None);
    check_gate(&world.journal);
}

#[tokio::test]
async fn rank_headers_choose_ranks_only_where_they_are_allowed() {
    let headers = [("x-data-parallel-rank", "1"), ("x-kvgate-prefill-rank", "0")];
    let world = World::new(Setup { args: "--allow-rank-headers", ..Setup::default() }).await;
    for _ in 0..3 {
        let answer = world.post("/v1/completions", r#"{"prompt":"p"}"#, &headers).await;
        assert_eq!((answer.header("x-kvgate-prefill-rank"), answer.header("x-kvgate-decode-rank")), ("0", "1"));
        let answer = world.post("/v1/completions", r#"{"prompt":"p"}"#, &headers[..1]).await;
        assert_eq!((answer.header("x-kvgate-prefill-rank"), answer.header("x-kvgate-decode-rank")), ("1", "1"));
    }
    for (value, code) in [("9", "rank_unknown"), ("x", "rank_header_invalid"), ("-1", "rank_header_invalid")] {
        let answer = world.post("/v1/completions", r#"{"prompt":"p"}"#, &[("x-data-parallel-rank", value)]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, code));
    }
    check_gate(&world.journal);

    let world = World::new(Setup::default()).await;
    let mut ranks = BTreeSet::new();
    for _ in 0..4 {
        let answer = world.post("/v1/completions", r#"{"prompt":"p"}"#, &headers[..1]).await;
        ranks.insert(answer.header("x-kvgate-decode-rank").to_owned());
    }
    assert_eq!(ranks.len(), 2, "the header is ignored");
}
