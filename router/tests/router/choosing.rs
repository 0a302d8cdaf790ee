//! Which ranks get the work: by load, by policy, and not those that fail.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::engines::{Decodes, Prefills};
use crate::journal::Event;
use crate::sidecars::Transfers;
use crate::world::{Answer, Setup, World};

const BODY: &str = r#"{"prompt":"p"}"#;

fn ranks(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    (answer.header("x-kvgate-prefill-rank").to_owned(), answer.header("x-kvgate-decode-rank").to_owned())
}

/// Sends `count` requests one after the other and collects where they were decoded.
async fn decoded_on(world: &World, count: usize) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for _ in 0..count {
        seen.insert(ranks(&world.complete(BODY).await).1);
    }
    seen
}

async fn worker(world: &World, id: &str) -> Value {
    let list = world.get("/v1/workers").await.json();
    list["workers"].as_array().unwrap().iter().find(|worker| worker["id"] == id).cloned().unwrap_or_default()
}

/// Waits until a worker is as wanted.
async fn wait_for(world: &World, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let worker = worker(world, id).await;
        if wanted(&worker) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {worker}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn loaded(rank: u16, running: u64, kv_usage: f64, used_blocks: u64) -> Value {
    json!({
        "dp_rank": rank, "local_rank": rank, "state": "ready", "reasons": [], "draining": false,
        "load": {"running": running, "waiting": 0, "kv_usage": kv_usage},
        "staging": {"capacity_blocks": 100, "used_blocks": used_blocks, "quarantined_blocks": 0, "block_bytes": 1},
    })
}

#[tokio::test]
async fn the_choice_follows_what_the_sidecars_report() {
    let world = World::new(Setup::default()).await;
    let set = |rank: Value| {
        let at = usize::try_from(rank["local_rank"].as_u64().unwrap()).unwrap();
        world.decode_sidecar().ranks.send_modify(|ranks| ranks[at] = rank);
    };
    let nobody = loaded(0, 0, 0.0, 0);
    set(loaded(1, 0, 0.0, 0));
    wait_for(&world, "decode-0@1", "idle", |worker| worker["load"]["kv_usage"] == 0.0).await;
    for (what, busy, shown) in [
        ("running", loaded(0, 5, 0.0, 0), "/load/running"),
        ("kv usage", loaded(0, 0, 0.9, 0), "/load/kv_usage"),
        ("staging", loaded(0, 0, 0.0, 90), "/load/staging_used"),
    ] {
        set(busy);
        wait_for(&world, "decode-0@0", what, |worker| worker.pointer(shown).is_some_and(|it| it.as_f64() > Some(0.0)))
            .await;
        assert_eq!(decoded_on(&world, 4).await, BTreeSet::from(["1".to_owned()]), "{what} of rank 0");
        set(nobody.clone());
        wait_for(&world, "decode-0@0", what, |worker| worker.pointer(shown).is_some_and(|it| it.as_f64() == Some(0.0)))
            .await;
    }
    assert_eq!(decoded_on(&world, 4).await.len(), 2, "equals take turns");
}

#[tokio::test]
async fn a_prompt_that_staging_is_too_small_for_is_tried_again_only_where_there_is_more() {
    let world = World::new(Setup { ranks: 4, ..Setup::default() }).await;
    let prefills = || world.journal.count(|event| matches!(event, Event::Prefill { .. }));
    for local in 0..4 {
        let load = loaded(u16::try_from(local).unwrap(), 0, 0.0, 10);
        world.decode_sidecar().ranks.send_modify(|ranks| ranks[local] = load);
        let used = |worker: &Value| worker["load"]["staging_used"] == 0.1;
        wait_for(&world, &format!("decode-0@{local}"), "its staging", used).await;
    }
    let refusal = || Transfers::Problem(413, "request_exceeds_staging", "other_target");
    world.decode_sidecar().next(refusal());
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (413, "request_exceeds_staging"));
    assert_eq!(prefills(), 1, "the other ranks' arenas are no larger");

    // Busier than the others, so that it is not the first choice.
    let mut larger = loaded(3, 5, 0.0, 10);
    larger["staging"]["capacity_blocks"] = json!(200);
    world.decode_sidecar().ranks.send_modify(|ranks| ranks[3] = larger);
    wait_for(&world, "decode-0@3", "its arena", |worker| worker["load"]["staging_used"] == 0.05).await;
    world.decode_sidecar().next(refusal());
    assert_eq!(ranks(&world.complete(BODY).await).1, "3");
    assert_eq!(prefills(), 3);
}

#[tokio::test]
async fn a_long_request_weighs_more_than_a_short_one() {
    let world = World::new(Setup::default()).await;
    world.decode().next(Decodes::Hangs);
    let long = world.start(r#"{"prompt":"p","max_tokens":5000}"#);
    world.journal.wait_for("the long decode", 1, |event| matches!(event, Event::Decode { .. })).await;
    let busy = decoded_on(&world, 3).await;
    assert_eq!(busy.len(), 1, "one after the other they all go to the other rank");
    let other = busy.first().unwrap();
    let long_rank = if other == "0" { "decode-0@1" } else { "decode-0@0" };
    let load = worker(&world, long_rank).await["load"].clone();
    assert_eq!((&load["in_flight"], &load["outstanding_tokens"]), (&json!(1), &json!(5001)));
    long.abort();
    wait_for(&world, long_rank, "its end", |worker| worker["load"]["outstanding_tokens"] == 0).await;
}

#[tokio::test]
async fn the_same_session_gets_the_same_rank_and_others_spread() {
    let setup = Setup { ranks: 4, args: "--policy consistent_hash --session-header x-who", ..Setup::default() };
    let world = World::new(setup).await;
    let mut seen = BTreeSet::new();
    for session in 0..16 {
        let name = format!("s{session}");
        let mut homes = BTreeSet::new();
        for _ in 0..2 {
            homes.insert(ranks(&world.post("/v1/completions", BODY, &[("x-who", &name)]).await));
        }
        assert_eq!(homes.len(), 1, "{name}");
        seen.extend(homes);
    }
    assert!(seen.len() > 1);
    let by_user = |user: usize| format!(r#"{{"prompt":"p{user}","user":"someone"}}"#);
    let mut homes = BTreeSet::new();
    for n in 0..4 {
        homes.insert(ranks(&world.complete(by_user(n)).await));
    }
    assert_eq!(homes.len(), 1, "the body's user names a session too");
}

#[tokio::test]
async fn who_has_the_prompt_gets_what_begins_like_it() {
    let setup = Setup { ranks: 4, args: "--prefill-policy cache-aware", ..Setup::default() };
    let world = World::new(setup).await;
    let ask = |topic: usize, more: usize| {
        format!(r#"{{"prompt":"{}{}"}}"#, format!("topic {topic} ").repeat(200), "more ".repeat(more))
    };
    let mut seen = BTreeSet::new();
    for topic in 0..4 {
        let home = ranks(&world.complete(ask(topic, 0)).await).0;
        for more in 1..3 {
            assert_eq!(ranks(&world.complete(ask(topic, 20 * more)).await).0, home, "topic {topic}");
        }
        seen.insert(home);
    }
    assert!(seen.len() > 1, "what is new goes to whoever has least to do");
}

#[tokio::test]
async fn round_robin_goes_round() {
    let world = World::new(Setup { ranks: 4, args: "--policy round-robin", ..Setup::default() }).await;
    for _ in 0..3 {
        assert_eq!(decoded_on(&world, 4).await.len(), 4);
    }
}

#[tokio::test]
async fn a_rank_that_fails_is_left_alone_and_probed_again() {
    let setup =
        Setup { args: "--cb-failure-threshold 2 --cb-timeout-duration-secs 1 --retry-floor 100", ..Setup::default() };
    let world = World::new(setup).await;
    world.decode_sidecar().set(1, "degraded");
    world.wait_until_ready(3).await;
    for _ in 0..2 {
        world.prefill.next(Prefills::Status(500, "{}"));
    }
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (502, "prefill_failed"), "{answer:?}");
    wait_for(&world, "prefill-0@0", "open", |worker| worker["breaker"] == "open").await;
    let before = world.journal.count(|event| matches!(event, Event::Prefill { .. }));
    assert_eq!(before, 2);
    let refused = world.complete(BODY).await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (503, "not_ready"));
    assert!(refused.json()["error"]["message"].to_string().contains("prefill-0@0 is left alone after failures"));
    assert_eq!(world.journal.count(|event| matches!(event, Event::Prefill { .. })), before, "nothing was sent");
    let deadline = Instant::now() + Duration::from_secs(10);
    while world.complete(BODY).await.status.as_u16() != 200 {
        assert!(Instant::now() < deadline, "it is not probed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(worker(&world, "prefill-0@0").await["breaker"], "closed");
}

/// The engine is dead while its sidecar, which does not know yet, calls it ready.
#[tokio::test]
async fn a_dead_engine_gets_a_couple_of_requests_and_no_client_sees_it() {
    let world = World::new(Setup { ranks: 4, ..Setup::default() }).await;
    let nobody = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let sidecar = worker(&world, "prefill-0@0").await["sidecar"].as_str().unwrap().trim_end_matches('/').to_owned();
    let body = format!(r#"{{"url":"http://{nobody},sidecar={sidecar}","side":"prefill"}}"#);
    assert_eq!(world.post("/v1/workers", body, &[("content-type", "application/json")]).await.status.as_u16(), 201);
    wait_for(&world, "prefill-1@3", "ready", |worker| worker["ready"] == true).await;
    let begun = Instant::now();
    let mut attempts = 0;
    for _ in 0..100 {
        let answer = world.complete(BODY).await;
        assert_eq!(answer.status.as_u16(), 200);
        attempts += answer.header("x-kvgate-attempts").parse::<u64>().unwrap();
    }
    assert_eq!(worker(&world, "prefill-1@0").await["pod_breaker"], "open");
    let probes = begun.elapsed().as_secs();
    assert!((101..=102 + probes).contains(&attempts), "{attempts} attempts, of which {probes} may be probes");
}

#[tokio::test]
async fn a_pod_whose_sidecar_dies_is_not_ready_within_a_second() {
    let world = World::new(Setup::default()).await;
    let begun = Instant::now();
    world.decode_sidecar().die();
    wait_for(&world, "decode-0@0", "not ready", |worker| worker["ready"] == false).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let worker = worker(&world, "decode-0@1").await;
    assert_eq!(worker["state"], "not followed (its sidecar does not answer)");
    assert!(worker["reasons"][0].as_str().unwrap().contains("http://127.0.0.1"), "operators see the address");
}

#[tokio::test]
async fn a_pod_whose_sidecar_falls_silent_is_not_ready_within_a_second() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().fall_silent();
    let begun = Instant::now();
    wait_for(&world, "decode-0@0", "not ready", |worker| worker["ready"] == false).await;
    assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn ranks_that_a_new_stream_does_not_name_are_unknown() {
    let world = World::new(Setup::default()).await;
    world.decode_sidecar().ranks.send_modify(|ranks| drop(ranks.pop()));
    world.decode_sidecar().kick();
    wait_for(&world, "decode-0@1", "unknown", |worker| worker["state"] == "unknown" && worker["ready"] == false).await;
    assert_eq!(worker(&world, "decode-0@0").await["ready"], true);
}

#[tokio::test]
async fn pods_come_are_drained_and_go() {
    let world = World::new(Setup { decode_pods: 2, ..Setup::default() }).await;
    let listed = world.get("/v1/workers").await.json();
    assert_eq!(listed["workers"].as_array().unwrap().len(), 6);
    let first = worker(&world, "decode-0@1").await;
    assert_eq!(
        (&first["side"], &first["dp_rank"], &first["state"], &first["breaker"]),
        (&json!("decode"), &json!(1), &json!("ready"), &json!("closed"))
    );
    let url = first["url"].as_str().unwrap().strip_suffix("@1").unwrap().to_owned();
    let sidecar = first["sidecar"].as_str().unwrap().trim_end_matches('/').to_owned();

    // The other pod takes nothing while the request comes that hangs on this one.
    world.post("/v1/workers/decode-1/drain", "", &[]).await;
    world.decodes[0].next(Decodes::Hangs);
    let hangs = world.start(BODY);
    world.journal.wait_for("the decode", 1, |event| matches!(event, Event::Decode { .. })).await;
    assert_eq!(world.post("/v1/workers/decode-1/resume", "", &[]).await.status.as_u16(), 200);
    let drained = world.post("/v1/workers/decode-0/drain", "", &[]).await.json();
    assert_eq!((&drained["drained"], &drained["in_flight"]), (&json!(false), &json!(1)));
    let before = world.decodes[0].served();
    decoded_on(&world, 6).await;
    assert_eq!(world.decodes[0].served(), before, "no new work");
    let drained = world.post("/v1/workers/decode-0/drain?wait=0.05", "", &[]).await.json();
    assert_eq!((&drained["drained"], &drained["in_flight"]), (&json!(false), &json!(1)));
    hangs.abort();
    let drained = world.post("/v1/workers/decode-0/drain?wait=10", "", &[]).await.json();
    assert_eq!((&drained["drained"], &drained["in_flight"]), (&json!(true), &json!(0)));
    assert_eq!(worker(&world, "decode-0@0").await["state"], "drained");

    let figures = async |world: &World| String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    assert!(figures(&world).await.contains(r#"side="decode",pod="0""#));
    assert_eq!(world.send("DELETE", "/v1/workers/decode-0", &[], "").await.status.as_u16(), 200);
    assert!(!figures(&world).await.contains(r#"side="decode",pod="0""#), "its figures go with it");
    assert_eq!(world.send("DELETE", "/v1/workers/decode-0", &[], "").await.code(), "worker_unknown");
    assert_eq!(worker(&world, "decode-0@0").await, Value::Null);
    let json = [("content-type", "application/json")];
    let body = format!(r#"{{"url":"{url},sidecar={sidecar}","side":"decode"}}"#);
    let added = world.post("/v1/workers", body.clone(), &json).await;
    assert_eq!((added.status.as_u16(), &added.json()["id"]), (201, &json!("decode-2")), "numbers are not used again");
    assert_eq!(world.post("/v1/workers", body, &json).await.code(), "worker_exists");
    wait_for(&world, "decode-2@1", "ready", |worker| worker["ready"] == true).await;
    world.post("/v1/workers/decode-1@0/drain", "", &[]).await;
    world.post("/v1/workers/decode-1@1/drain", "", &[]).await;
    let before = world.decodes[0].served();
    decoded_on(&world, 2).await;
    assert_eq!(world.decodes[0].served(), before + 2, "the new pod works");
    world.post("/v1/workers/decode-2/drain", "", &[]).await;
    let refused = world.complete(BODY).await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (503, "not_ready"));
    assert!(refused.json()["error"]["message"].to_string().contains("decode-1@0 is drained by an operator"));
    world.post("/v1/workers/decode-1/resume", "", &[]).await;
    world.post("/v1/workers/decode-1@1/resume", "", &[]).await;
    assert_eq!(decoded_on(&world, 2).await, BTreeSet::from(["1".to_owned()]));
    for (path, code) in [("/v1/workers/x/drain", "worker_unknown"), ("/v1/workers/decode-1@9/drain", "worker_unknown")]
    {
        assert_eq!(world.post(path, "", &[]).await.code(), code);
    }
    assert_eq!(world.send("DELETE", "/v1/workers/decode-1@0", &[], "").await.code(), "worker_invalid");
    for url in ["ftp://x", "https://x:1", "http://x:1,sidecar=https://x:2"] {
        let body = format!(r#"{{"url":"{url}","side":"decode"}}"#);
        assert_eq!(world.post("/v1/workers", body, &json).await.code(), "worker_invalid", "{url}");
    }
}
