//! Each oracle is given a history that it must not mind and one that it must: an oracle that cannot fail proves nothing.

use std::time::Duration;

use kv::ids::DpRank;
use nixl::AgentName;
use serde_json::json;
use sim::request_log::Line;
use vllm_wire::notif;
use vllm_wire::params::KvTransferParams;

use super::*;
use crate::edits;
use crate::hosts::Host;

const P: Host = Host::PrefillEngine(0);
const D: Host = Host::DecodeEngine(0);
const SIDECAR: Host = Host::DecodeSidecar(0);
const LEASE: Duration = Duration::from_secs(3);

/// The history of one run, seen by the oracles.
struct History(Evidence);

impl History {
    /// P has answered `cmpl-a` for request `a`, which is still under way.
    fn prefilled() -> Self {
        let evidence = Evidence::default();
        evidence.lease(LEASE);
        evidence.staging(4096);
        let history = Self(evidence);
        history.0.asked("a", "/v1/completions", SENT);
        history.prefill("a", "cmpl-a");
        history
    }

    fn prefill(&self, tag: &str, request: &str) {
        let params = json!({"remote_request_id": request, "remote_block_ids": [[1, 2]]});
        self.0.prefilled(P, Some(tag), &params);
    }

    fn at(&self, ms: u64) -> &Self {
        self.0.now(Duration::from_millis(ms));
        self
    }

    fn receipt(&self, virtual_request: &str, source: &str) -> &Self {
        self.0.received_receipt(named(virtual_request), DpRank(1), D, source);
        self
    }

    fn decode(&self, tag: &str, virtual_request: &str) -> &Self {
        self.0.decode(D, DpRank(1), Some(tag), &params(virtual_request));
        self
    }

    fn sent(&self, from: Host, message: &[u8]) -> &Self {
        self.0.sent(from, Some(P), &AgentName::new("p-worker").unwrap(), message);
        self
    }

    fn done(&self, from: Host, request: &str) -> &Self {
        self.sent(from, &notif::done(&kv::ids::EngineRequestId::new(request), 1))
    }

    /// Which promises were broken, in order.
    fn broken(&self) -> Vec<String> {
        let word = |line: &String| line.split_whitespace().nth(1).unwrap().trim_end_matches(':').to_owned();
        self.0.with(|record| record.broken.iter().map(word).collect())
    }

    #[track_caller]
    fn is_well(&self) -> &Self {
        assert!(self.broken().is_empty(), "{:?}", self.0.with(|record| record.broken.clone()));
        self
    }
}

fn named(virtual_request: &str) -> VirtualRequest {
    ("virtual".to_owned(), virtual_request.to_owned())
}

fn params(virtual_request: &str) -> KvTransferParams {
    let params = json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1, 2]], "remote_engine_id": "virtual",
        "remote_request_id": virtual_request, "remote_host": "d0s", "remote_port": 7801, "tp_size": 1, "remote_num_tokens": 8,
    });
    KvTransferParams::parse(&params).unwrap()
}

const SENT: &[u8] =
    br#"{ "model":"sim","prompt":[1],"max_tokens" : 5, "kv_transfer_params":{"remote_host":"evil"},"x":1.50 }"#;
const AT_D: &[u8] =
    br#"{ "model":"sim","prompt":[1],"max_tokens" : 5, "kv_transfer_params":{"remote_host":"d0s"},"x":1.50 }"#;
const AT_P: &[u8] = br#"{ "model":"sim","prompt":[1],"max_tokens" : 1, "kv_transfer_params":{"do_remote_decode":true},"x":1.50,"stream":false }"#;

#[test]
fn g_a_decode_needs_a_receipt_for_its_request_and_its_rank() {
    let history = History::prefilled();
    history.receipt("v-1", "cmpl-a").decode("a", "v-1").is_well();
    for (what, decode) in [
        ("none", Box::new(|history: &History| _ = history.decode("a", "v-2")) as Box<dyn Fn(&History)>),
        ("another rank's", Box::new(|history| history.0.decode(D, DpRank(2), Some("a"), &params("v-1")))),
        (
            "another pod's",
            Box::new(|history| history.0.decode(Host::DecodeEngine(1), DpRank(1), Some("a"), &params("v-1"))),
        ),
        ("computed alone", Box::new(|history| history.0.alone(D, "a"))),
    ] {
        let history = History::prefilled();
        history.receipt("v-1", "cmpl-a");
        decode(&history);
        assert_eq!(history.broken(), ["G"], "{what}");
    }
    assert_eq!(history.0.with(|record| (record.decodes, record.without_receipt)), (1, 0));
}

#[test]
fn l_a_decode_needs_a_receipt_of_what_was_read_within_the_lease() {
    let history = History::prefilled();
    history.at(2_990).receipt("v-1", "cmpl-a").at(9_000).decode("a", "v-1").is_well();
    history.at(3_010).receipt("v-2", "cmpl-a").is_well();
    history.decode("a", "v-2");
    assert_eq!(history.broken(), ["L"]);
    let kept = History::prefilled();
    let beat = notif::heartbeat([&kv::ids::EngineRequestId::new("cmpl-a")]);
    kept.at(2_900).sent(SIDECAR, &beat).at(4_800).receipt("v-1", "cmpl-a").decode("a", "v-1").is_well();
    kept.at(5_000).sent(SIDECAR, &beat).receipt("v-2", "cmpl-a").decode("a", "v-2");
    assert_eq!(kept.broken(), ["L"], "a late beat revives nothing");
    let unknown = History::prefilled();
    unknown.receipt("v-1", "cmpl-unknown").decode("a", "v-1");
    assert_eq!(unknown.broken(), ["I", "L"], "of what nobody has prefilled");
}

#[test]
fn n_each_worker_of_p_is_told_once_and_after_the_receipt() {
    let well = History::prefilled();
    well.receipt("v-1", "cmpl-a").done(SIDECAR, "cmpl-a").is_well();
    well.done(SIDECAR, "cmpl-a");
    assert_eq!(well.broken(), ["N"], "twice");
    let both = History::prefilled();
    both.receipt("v-1", "cmpl-a").done(SIDECAR, "cmpl-a").done(Host::PrefillSidecar(0), "cmpl-a");
    assert_eq!(both.broken(), ["N"], "read, and abandoned");
    let early = History::prefilled();
    early.done(SIDECAR, "cmpl-b");
    assert_eq!(early.broken(), ["N"], "before P has answered");
    let retried = History::prefilled();
    retried.done(SIDECAR, "cmpl-a").receipt("v-1", "cmpl-a");
    assert_eq!(retried.broken(), ["N"], "on an attempt that was made again");
}

#[test]
fn i_a_decode_reads_the_kv_of_its_own_request() {
    let history = History::prefilled();
    history.prefill("b", "cmpl-b");
    history.receipt("v-1", "cmpl-b").decode("a", "v-1");
    assert_eq!(history.broken(), ["I"]);
}

#[test]
fn i_what_was_decoded_from_another_s_bytes_is_given_to_nobody() {
    let line = |reused_bytes| Line {
        at_us: 0,
        dp_rank: 1,
        engine_id: "d",
        request_id: "cmpl-d",
        kind: "decode",
        remote_engine_id: Some("virtual"),
        remote_request_id: Some("v-1"),
        outcome: "ok",
        reused_bytes,
    };
    for (given, foreign, broken) in
        [(true, Some(512), &["I"][..]), (true, Some(0), &[]), (true, None, &[]), (false, Some(512), &[])]
    {
        let history = History::prefilled();
        let answer = history.0.answer("a", named("v-1"));
        history.0.said(&answer, b"data: 1\n\n");
        history.0.request_log().write(&line(foreign));
        if given {
            history.0.received("a", b"data: 1", false);
        }
        history.0.settle();
        assert_eq!(history.broken(), broken, "given {given}, foreign {foreign:?}");
    }
}

#[test]
fn b_what_reaches_an_engine_is_the_client_s_but_for_the_edits() {
    let well = History::prefilled();
    well.0.reached(P, Leg::Prefill, "a", AT_P);
    well.0.reached(D, Leg::Decode, "a", AT_D);
    well.is_well();
    let changed = |body: &[u8], from: &str, to: &str| {
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1).into_bytes()
    };
    for (leg, body) in [
        (Leg::Decode, changed(AT_D, "1.50", "1.5")),
        (Leg::Decode, changed(AT_D, "\"max_tokens\" : 5", "\"max_tokens\":5")),
        (Leg::Decode, changed(AT_D, "\"x\":1.50", "\"x\":1.50,\"y\":1")),
        (Leg::Decode, changed(AT_D, ",\"prompt\":[1]", "")),
        (Leg::Decode, changed(AT_D, "\"model\":\"sim\",\"prompt\":[1]", "\"prompt\":[1],\"model\":\"sim\"")),
        (Leg::Decode, SENT.get(..20).unwrap().to_vec()),
        (Leg::Prefill, changed(AT_P, "\"max_tokens\" : 1", "\"max_tokens\" : 5")),
        (Leg::Prefill, changed(AT_P, ",\"stream\":false", "")),
        (Leg::Prefill, changed(AT_P, "1.50", "1.5")),
    ] {
        let history = History::prefilled();
        history.0.reached(D, leg, "a", &body);
        assert_eq!(history.broken(), ["B"], "{}", String::from_utf8_lossy(&body));
    }
    let unknown = History::prefilled();
    unknown.0.reached(D, Leg::Decode, "b", AT_D);
    assert_eq!(unknown.broken(), ["B"], "nobody has sent it");
    assert!(edits::at_d(SENT, AT_D).unwrap()["remote_host"] == "d0s");
}

#[test]
fn b_what_a_client_gets_is_what_an_engine_said() {
    let said: [&[u8]; 2] = [b"data: {\"a\":1}\n\n", b"data: [DONE]\n\n"];
    let history = History::prefilled();
    let answer = history.0.answer("a", named("v-1"));
    said.iter().for_each(|piece| history.0.said(&answer, piece));
    history.0.received("a", &said.concat(), true);
    history.0.received("a", said[0], false);
    history.0.received("a", b"", false);
    history.is_well();
    for (bytes, whole) in [(said[0], true), (said[1], false), (b"data: {\"a\":2}\n\n", false), (b"", true)] {
        let history = History::prefilled();
        let answer = history.0.answer("a", named("v-1"));
        said.iter().for_each(|piece| history.0.said(&answer, piece));
        history.0.received("a", bytes, whole);
        assert_eq!(history.broken(), ["B"], "{} {whole}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn s_a_sidecar_holds_no_more_than_it_is_configured_to() {
    let [pull, serve, next] = ["pull", "serve", "next"].map(|name| AgentName::new(name).unwrap());
    let history = History::prefilled();
    history.0.registered(SIDECAR, &pull, (0, 4096));
    history.0.registered(SIDECAR, &serve, (0, 4096));
    history.0.unregistered(&pull);
    history.0.registered(SIDECAR, &next, (0, 4096));
    history.0.registered(D, &next, (8192, 1 << 20));
    history.is_well();
    history.0.unregistered(&serve);
    history.0.unregistered(&next);
    history.0.registered(SIDECAR, &pull, (1 << 16, 4096));
    history.0.died(SIDECAR);
    history.0.registered(SIDECAR, &serve, (0, 4096));
    history.is_well();
    history.0.registered(SIDECAR, &serve, (4096, 1));
    assert_eq!(history.broken(), ["S"]);
}

#[test]
fn s_a_run_holds_no_more_than_it_should() {
    let broken = |peak| {
        let mut outcome = crate::run::Outcome::default();
        outcome.check_memory(peak);
        outcome.broken.len()
    };
    assert_eq!((broken(None), broken(Some(crate::run::MOST_MIB)), broken(Some(crate::run::MOST_MIB + 1))), (0, 0, 1));
    assert!(peak_mib().is_some_and(|mib| mib > 0 && mib < 1 << 20), "Linux says it");
}

#[test]
fn every_request_ends_and_has_its_text() {
    let history = History::prefilled();
    for ended in [Ended::Right, Ended::Error("503".to_owned()), Ended::Left] {
        history.0.ended("a", &ended);
    }
    history.is_well();
    history.0.ended("a", &Ended::Hung);
    history.0.ended("a", &Ended::Wrong("other".to_owned()));
    assert_eq!(history.broken(), ["liveness", "text"]);
}
