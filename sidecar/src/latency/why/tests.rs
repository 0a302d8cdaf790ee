//! The words, pinned.

use std::sync::Arc;

use kv::ids::{AttemptId, DpRank, EngineRequestId, TpRank, TransferId};
use nixl::AgentName;
use side_channel::Endpoint;

use super::*;
use crate::latency::{Latency, Series};
use crate::model::{Code, DigestFacts, QueuedBehind, ShardRead, Stages, TransferFailure, TransferPhase};

fn stages(us: [u64; 5]) -> Stages {
    let [queued, handshake, post, wire, verify] = us.map(|us| Some(Duration::from_micros(us)));
    Stages { queued, handshake, post, wire, verify, ..Stages::default() }
}

fn starts(stages: &Stages) -> Stages {
    let mut sum = Duration::ZERO;
    let [queued, handshake, post, wire, verify, ..] = stages.named().map(|(_, time)| {
        let start = time.map(|_| sum);
        sum += time.unwrap_or_default();
        start
    });
    Stages { queued, handshake, post, wire, verify, ..Stages::default() }
}

/// Five transfers of 1 MiB each with 6 ms on the wire from `usual`, with 5 ms from another peer.
fn seen() -> Latency {
    let latency = Latency::new();
    for (peer, wire) in [("usual", 6_000), ("another", 5_000), ("slow", 80_000)] {
        let series = Series { dp_rank: DpRank(0), peer: Some(EngineId::new(peer)) };
        let times = if peer == "slow" { 3 } else { 5 };
        for _ in 0..times {
            latency.landed(&series, &ReadFacts::default(), &stages([20, 0, 100, wire, 50]), 1 << 20);
        }
    }
    latency
}

fn read(descriptors: u64, pieces: u64, bytes: u64) -> ReadFacts {
    let shard = ShardRead {
        shard: TpRank(0),
        agent: AgentName::new("agent-p").unwrap(),
        descriptors,
        pieces,
        bytes,
        planned: Duration::from_micros(80),
        start: Duration::from_micros(120),
        post_call: Duration::from_micros(10),
        wire: Duration::from_millis(41),
    };
    ReadFacts { address: Some(Endpoint::new("10.0.0.7", 5600)), shards: vec![shard], ..ReadFacts::default() }
}

fn transfer(peer: &str, us: [u64; 5], read: ReadFacts) -> TransferSnapshot {
    let stages = stages(us);
    TransferSnapshot {
        transfer: TransferId::new("t"),
        attempt: AttemptId::new("a"),
        request_label: String::new(),
        dp_rank: DpRank(0),
        state: TransferPhase::Landed,
        blocks: 2,
        bytes: 1,
        stages,
        starts: starts(&stages),
        read: Arc::new(read),
        source_engine: EngineId::new(peer),
        source_request: EngineRequestId::new("r"),
        virtual_request: None,
        collected_by: None,
        freed: None,
        failure: None,
        started: Instant::now(),
        trace: None,
    }
}

fn tcp() -> Transport {
    Transport {
        ucx_version: "1.23.0".to_owned(),
        ucx_tls: "tcp".to_owned(),
        ucx_net_devices: "all".to_owned(),
        available: vec!["tcp/eth0".to_owned()],
        candidates: vec!["tcp".to_owned()],
    }
}

fn said(transfer: &TransferSnapshot) -> Why {
    why(transfer, &seen().usual(), Some(&tcp()), Instant::now()).unwrap()
}

#[test]
fn a_slow_wire_is_told_with_its_descriptors_and_transport() {
    let why = said(&transfer("usual", [20, 0, 100, 41_000, 50], read(8192, 8192, 8192 << 15)));
    assert_eq!(why.stage, "wire");
    assert!(why.peer_median.unwrap().abs_diff(Duration::from_millis(6)) < Duration::from_micros(60));
    assert_eq!(
        why.text,
        "wire: 41 ms against 6.0 ms; 8192 descriptors of 32 KiB not merged; 256 MiB, 256 times as much as usual from this \
         peer; UCX used tcp"
    );
    let merged = said(&transfer("usual", [20, 0, 100, 41_000, 50], read(2, 32, 1 << 20)));
    assert_eq!(merged.text, "wire: 41 ms against 6.0 ms; 2 descriptors, merged from 32 of 32 KiB; UCX used tcp");
}

#[test]
fn a_slow_peer_is_held_against_the_others() {
    let why = said(&transfer("slow", [20, 0, 100, 81_000, 50], read(2, 32, 1 << 20)));
    assert_eq!(why.stage, "wire");
    let (start, rest) = why.text.split_once(" with other peers").unwrap();
    assert!(start.starts_with("wire: 81 ms against "), "{start}");
    assert!(rest.contains("this peer's median is 80 ms: it is slow, not only this transfer"), "{rest}");
}

#[test]
fn a_wait_for_staging_says_how_full_it_was() {
    let behind = QueuedBehind { needed: 5, free: 2, capacity: 16, ahead: 3 };
    let facts = ReadFacts { queued_behind: Some(behind), ..read(2, 32, 1 << 20) };
    let why = said(&transfer("usual", [1_200_000, 0, 100, 6_000, 50], facts));
    assert_eq!(why.stage, "queued");
    assert_eq!(
        why.text,
        "queued: 1.2 s against 20 µs; staging was full (5 slots wanted, 2 of 16 free, 3 transfers ahead); raise \
         --staging-bytes, or see whether decode collects in time"
    );
}

#[test]
fn a_first_contact_is_told_as_one() {
    let facts = ReadFacts { contact: Contact::Asked, ..read(2, 32, 1 << 20) };
    let why = said(&transfer("new", [20, 30_000, 100, 6_000, 50], facts));
    assert_eq!(why.stage, "handshake");
    assert!(why.text.starts_with("handshake: 30 ms against 0 µs with other peers"), "{}", why.text);
    assert!(
        why.text.ends_with(
            "first contact with this peer: its side channel at 10.0.0.7:5600 was asked and its agent loaded"
        )
    );
}

#[test]
fn a_peer_that_gave_no_answer_was_not_loaded() {
    let facts = ReadFacts { contact: Contact::Asked, shards: Vec::new(), ..read(2, 32, 1 << 20) };
    let mut failed = transfer("new", [20, 5_000_000, 0, 0, 0], facts);
    failed.stages = Stages { post: None, wire: None, verify: None, ..failed.stages };
    failed.starts = Stages { post: None, wire: None, verify: None, ..failed.starts };
    failed.state = TransferPhase::Failed;
    failed.failure = Some(TransferFailure { code: Code::PeerUnreachable, detail: String::new() });
    let why = said(&failed);
    assert_eq!(
        why.text,
        "handshake: 5.0 s against 0 µs with other peers (too few transfers from this one); it failed then \
         (peer_unreachable); first contact with this peer: its side channel at 10.0.0.7:5600 was asked and gave no usable \
         answer"
    );
}

#[test]
fn posts_and_records_that_take_long_have_their_own_words() {
    let busy = said(&transfer("usual", [20, 0, 9_000, 6_000, 50], read(2, 32, 1 << 20)));
    assert_eq!(busy.text, "post: 9.0 ms against 100 µs; the rank's agent was busy with other reads");
    let record = said(&transfer("usual", [20, 0, 100, 6_000, 90_000], read(2, 32, 1 << 20)));
    assert!(record.text.contains("--receipt-log"), "{}", record.text);
    let digests = DigestFacts {
        blocks: 62,
        bytes: 128 << 20,
        source: Some(Duration::from_millis(95)),
        compared: Some(Duration::from_millis(20)),
    };
    let facts = ReadFacts { digests: Some(digests), ..read(2, 32, 1 << 20) };
    let compared = said(&transfer("usual", [20, 0, 100, 6_000, 90_000], facts));
    assert!(
        compared.text.ends_with(
            "62 blocks (128 MiB) compared with the source; the prefill pod's sidecar gave its digests 95 ms after it was asked; \
             comparing took 20 ms"
        ),
        "{}",
        compared.text
    );
}

#[test]
fn nothing_is_made_up_where_nothing_stands_out() {
    let usual = said(&transfer("usual", [20, 0, 100, 6_100, 50], read(2, 32, 1 << 20)));
    assert!(usual.text.starts_with("wire: 6.1 ms took most, which is usual (5."), "{}", usual.text);
    let nothing_known = Latency::new().usual();
    let alone = transfer("new", [20, 0, 100, 6_100, 50], read(2, 32, 1 << 20));
    let alone = why(&alone, &nothing_known, None, Instant::now()).unwrap();
    let text = "wire: 6.1 ms, and too few transfers to say what is usual; 2 descriptors, merged from 32 of 32 KiB";
    assert_eq!(alone.text, text);
}

#[test]
fn what_goes_on_and_what_failed_says_so() {
    let mut hangs = transfer("usual", [20, 0, 100, 0, 0], ReadFacts::default());
    hangs.stages = Stages { wire: None, verify: None, ..hangs.stages };
    hangs.starts.verify = None;
    hangs.state = TransferPhase::InFlight;
    let now = hangs.started + Duration::from_secs(7);
    let found = why(&hangs, &seen().usual(), Some(&tcp()), now).unwrap();
    assert_eq!(found.stage, "wire");
    assert!(found.text.starts_with("wire: 6.9 s against 6.0 ms; still going on"), "{}", found.text);
    hangs.close_open_stage(now);
    hangs.state = TransferPhase::Failed;
    hangs.failure = Some(TransferFailure { code: Code::Deadline, detail: String::new() });
    let found = why(&hangs, &seen().usual(), Some(&tcp()), now + Duration::from_secs(60)).unwrap();
    assert!(found.text.starts_with("wire: 6.9 s against 6.0 ms; it failed then (deadline)"), "{}", found.text);
}
