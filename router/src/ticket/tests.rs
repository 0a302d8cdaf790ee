//! Which receipts cover which decodes.

use std::time::Duration;

use kv::ids::LocalRank;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::breaker::Tuning;
use crate::targets::{Board, PodSpec, Side};

fn target(index: usize, rank: u16) -> Target {
    let board = Board::new(Tuning::new(1, 1, Duration::from_secs(1), Duration::from_secs(1)), CancellationToken::new());
    for engine in ["http://d0/", "http://d1/"] {
        let engine = http::Uri::from_static(engine);
        board.add(PodSpec { side: Side::Decode, engine, sidecar: None, ranks: 4 }).unwrap();
    }
    let found = board.ranks(Side::Decode).into_iter().map(|candidate| candidate.target);
    found.into_iter().find(|target| target.pod.id.index == index && target.local == LocalRank(rank)).unwrap()
}

fn raw(json: &str) -> RawParams {
    let json = Bytes::copy_from_slice(json.as_bytes());
    RawParams::part_of(&json, serde_json::from_slice(&json).unwrap())
}

fn receipt() -> Receipt {
    Receipt {
        asked: Asked {
            attempt: AttemptId::new("a-1"),
            pod: target(0, 2).pod.id,
            rank: DpRank(2),
            source_engine: EngineId::new("p_dp2"),
        },
        transfer: TransferId::new("t"),
        rank: DpRank(2),
        source_engine: EngineId::new("p_dp2"),
        virtual_engine: Bytes::from_static(b"v_dp2"),
        request: Bytes::from_static(b"v-1"),
        params: raw(r#"{"remote_engine_id": "v_dp2", "remote_request_id": "v-1", "x": 0.1}"#),
    }
}

#[test]
fn a_receipt_is_good_for_its_own_rank_and_pod_only() {
    let ticket = DecodeTicket::from_receipt(&receipt(), target(0, 2)).unwrap();
    assert_eq!(ticket.target().id().to_string(), "decode-0@2");
    assert_eq!(ticket.into_params(), receipt().params);
    for (pod, rank) in [(0, 3), (0, 1), (1, 2)] {
        let refused = DecodeTicket::from_receipt(&receipt(), target(pod, rank)).unwrap_err();
        assert_eq!(refused.code(), "receipt_rank_mismatch", "{pod}@{rank}");
    }
}

#[test]
fn a_receipt_that_does_not_answer_the_question_is_invalid() {
    let check = |change: fn(&mut Receipt), words: &str| {
        let mut receipt = receipt();
        change(&mut receipt);
        let refused = DecodeTicket::from_receipt(&receipt, target(0, 2)).unwrap_err();
        assert_eq!(refused.code(), "receipt_invalid");
        assert!(refused.to_string().contains(words), "{refused}");
    };
    check(|r| r.rank = DpRank(3), "rank 3");
    check(|r| r.source_engine = EngineId::new("p_dp3"), "p_dp3");
    check(|r| r.params = raw(r#"{"remote_engine_id": "p_dp2", "remote_request_id": "v-1"}"#), "remote_engine_id");
    check(|r| r.params = raw(r#"{"remote_engine_id": "v_dp2", "remote_request_id": "v-2"}"#), "remote_request_id");
    check(|r| r.params = raw("null"), "remote_engine_id");
}
