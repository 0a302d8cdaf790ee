//! The JSON of transfers, pinned.

use super::*;

use std::sync::Arc;

use kv::ids::{EngineId, EngineRequestId, TpRank, TransferId};
use nixl::AgentName;
use serde_json::json;
use side_channel::Endpoint;
use vllm_wire::params::KvTransferParams;

use crate::model::{Code, ReadFacts, ShardRead, TransferFailure, TransferPhase};

fn stages() -> Stages {
    Stages {
        queued: Some(Duration::from_micros(12)),
        handshake: Some(Duration::ZERO),
        post: Some(Duration::from_micros(340)),
        wire: Some(Duration::from_millis(5)),
        verify: Some(Duration::from_micros(7)),
        landed_idle: None,
        collect: None,
    }
}

fn starts() -> Stages {
    Stages {
        queued: Some(Duration::ZERO),
        handshake: Some(Duration::from_micros(12)),
        post: Some(Duration::from_micros(12)),
        wire: Some(Duration::from_micros(352)),
        verify: Some(Duration::from_micros(5352)),
        ..Stages::default()
    }
}

fn read() -> ReadFacts {
    let shard = ShardRead {
        shard: TpRank(0),
        agent: AgentName::new("agent-p1").unwrap(),
        descriptors: 3,
        pieces: 6,
        bytes: 8192,
        planned: Duration::from_micros(9),
        start: Duration::from_micros(352),
        post_call: Duration::from_micros(40),
        wire: Duration::from_millis(5),
    };
    ReadFacts { address: Some(Endpoint::new("p", 5601)), shards: vec![shard], ..ReadFacts::default() }
}

fn params() -> Value {
    json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[4, 5]],
        "remote_engine_id": "virtual-9", "remote_request_id": "kvgate-1", "remote_host": "127.0.0.1",
        "remote_port": 7801, "tp_size": 1, "remote_num_tokens": 32, "a_newer_field": "kept",
    })
}

fn landed() -> Landed {
    Landed {
        transfer: TransferId::new("t-1"),
        attempt: AttemptId::new("attempt-1"),
        receipt: Receipt {
            dp_rank: DpRank(9),
            engine_id: EngineId::new("engine-d9"),
            virtual_engine_id: EngineId::new("virtual-9"),
            source_engine_id: EngineId::new("engine-p1"),
            request_id: EngineRequestId::new("kvgate-1"),
            blocks: 2,
            bytes: 8192,
            stages: stages(),
            source_lease_left: Duration::from_millis(29_500),
            collect_by: Duration::from_secs(60),
            digest: None,
        },
        params: KvTransferParams::parse(&params()).unwrap(),
        source_request: EngineRequestId::new("cmpl-p1"),
    }
}

fn snapshot(state: TransferPhase) -> TransferSnapshot {
    TransferSnapshot {
        transfer: TransferId::new("t-1"),
        attempt: AttemptId::new("attempt-1"),
        request_label: "label-1".to_owned(),
        dp_rank: DpRank(9),
        state,
        blocks: 2,
        bytes: 8192,
        stages: stages(),
        starts: starts(),
        read: Arc::new(read()),
        source_engine: EngineId::new("engine-p1"),
        source_request: EngineRequestId::new("cmpl-1"),
        virtual_request: None,
        collected_by: None,
        freed: None,
        failure: None,
        started: Instant::now(),
        trace: None,
    }
}

#[test]
fn the_answer_of_a_landing_holds_the_receipt_and_the_rewritten_parameters() {
    let json = serde_json::to_value(LandedJson::from(&landed())).unwrap();
    assert_eq!(json["transfer_id"], "t-1");
    assert_eq!(
        json["receipt"],
        json!({
            "dp_rank": 9, "engine_id": "engine-d9", "virtual_engine_id": "virtual-9", "source_engine_id": "engine-p1",
            "request_id": "kvgate-1", "blocks": 2, "bytes": 8192,
            "stages_us": {"queued": 12, "handshake": 0, "post": 340, "wire": 5000, "verify": 7},
            "source_lease_left_ms": 29_500, "collect_by_ms": 60_000,
        })
    );
    let sent = &json["kv_transfer_params"];
    for (member, value) in params().as_object().unwrap() {
        assert_eq!(&sent[member], value, "{member}");
    }
}

#[test]
fn a_transfer_under_way_has_neither_receipt_nor_failure() {
    let snapshot = snapshot(TransferPhase::InFlight);
    let later = snapshot.started + Duration::from_millis(250);
    let text = serde_json::to_string(&TransferJson::new(&snapshot, later)).unwrap();
    assert_eq!(
        text,
        concat!(
            r#"{"transfer_id":"t-1","attempt_id":"attempt-1","request_id":"label-1","dp_rank":9,"state":"in_flight","#,
            r#""blocks":2,"bytes":8192,"stages_us":{"queued":12,"handshake":0,"post":340,"wire":5000,"verify":7},"#,
            r#""timeline":[{"stage":"queued","start_us":0,"duration_us":12},{"stage":"handshake","start_us":12,"duration_us":0},"#,
            r#"{"stage":"post","start_us":12,"duration_us":340},{"stage":"wire","start_us":352,"duration_us":5000},"#,
            r#"{"stage":"verify","start_us":5352,"duration_us":7}],"total_us":5359,"age_ms":250,"#,
            r#""source":{"engine_id":"engine-p1","request_id":"cmpl-1","address":"p:5601","contact":"known"},"#,
            r#""read":{"descriptors":3,"pieces":6,"merged":true,"bytes":8192,"shards":[{"tp_rank":0,"agent":"agent-p1","#,
            r#""descriptors":3,"pieces":6,"bytes":8192,"planned_us":9,"start_us":352,"post_call_us":40,"wire_us":5000}]}}"#
        )
    );
}

#[test]
fn a_failed_transfer_says_what_may_be_done() {
    let mut snapshot = snapshot(TransferPhase::Failed);
    snapshot.failure = Some(TransferFailure { code: Code::LeaseExpired, detail: "too late".to_owned() });
    let json = serde_json::to_value(TransferJson::new(&snapshot, snapshot.started)).unwrap();
    assert_eq!(json["failure"], json!({"code": "lease_expired", "detail": "too late", "retry": "new_prefill"}));
}

#[test]
fn a_collected_transfer_names_the_rank_that_came_and_a_landed_one_its_receipt() {
    let mut snapshot = snapshot(TransferPhase::Done);
    snapshot.collected_by = Some(DpRank(8));
    let json = serde_json::to_value(TransferJson::new(&snapshot, snapshot.started).with_receipt(&landed())).unwrap();
    assert_eq!((&json["dp_rank"], &json["collected_by"]), (&json!(9), &json!(8)));
    assert_eq!(json["receipt"]["request_id"], "kvgate-1");
    assert_eq!(json["kv_transfer_params"]["remote_port"], 7801);
}
