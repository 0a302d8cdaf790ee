//! The router in a decode pod, behind a gateway that names the prefiller in a header.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader looks for the events that it knows")]

use std::time::Duration;

use http::HeaderMap;
use tokio::net::TcpListener;

use crate::engines::{ANSWER, OTHER};
use crate::journal::Event;
use crate::world::{Answer, Setup, World, dead_port};

const BODY: &str = r#"{"prompt":"p"}"#;
const NAME: &str = "x-prefiller-host-port";

/// A pod whose router knows the prefill pod by a flag.
async fn known(args: &'static str) -> World {
    World::new(Setup { pod_local: true, args, ..Setup::default() }).await
}

/// One whose router knows only which addresses it may ask.
async fn allowing(args: &'static str) -> World {
    World::new(Setup { pod_local: true, unnamed_prefill: true, args, ..Setup::default() }).await
}

fn prefiller(world: &World) -> String {
    world.prefill_url().trim_start_matches("http://").to_owned()
}

async fn ask(world: &World, headers: &[(&str, &str)]) -> Answer {
    world.post("/v1/completions", BODY, headers).await
}

fn path_of(answer: &Answer) -> (u16, &str, &str) {
    (answer.status.as_u16(), answer.header("x-kvgate-path"), answer.header("x-kvgate-local-because"))
}

/// The headers that engines got.
fn engines_got(world: &World) -> Vec<HeaderMap> {
    let headers = |event| match event {
        Event::Prefill { headers, .. } | Event::Decode { headers, .. } | Event::Other { headers, .. } => Some(headers),
        _ => None,
    };
    world.journal.events().into_iter().filter_map(headers).collect()
}

#[tokio::test]
async fn without_a_prefiller_the_pod_does_it_alone() {
    let world = known("").await;
    for (path, body) in [
        ("/v1/completions", BODY),
        ("/v1/completions", r#"{"prompt":["a","b"]}"#),
        ("/v1/chat/completions", r#"{"messages":[]}"#),
    ] {
        let answer = world.post(path, body, &[]).await;
        assert_eq!(path_of(&answer), (200, "local", "no_prefiller"), "{path} {body}");
    }
    assert_eq!(path_of(&ask(&world, &[(NAME, " ")]).await), (200, "local", "no_prefiller"), "an empty header");
    assert_eq!((world.prefill.served(), world.decode().served()), (0, 4));
    assert!(world.journal.asked().is_empty(), "no transfer is asked for");
}

#[tokio::test]
async fn the_named_prefiller_prefills_and_the_decode_waits_for_the_receipt() {
    for world in [known("").await, allowing("--prefill-allow 127.0.0.0/8:*").await] {
        let named = prefiller(&world);
        let answer = ask(&world, &[(NAME, &named), ("x-encoder-hosts-ports", "10.0.0.1:1"), ("x-own", "kept")]).await;
        assert_eq!(path_of(&answer), (200, "pd", ""));
        assert_eq!(&*answer.body, ANSWER.as_bytes());
        assert_eq!(answer.header("x-kvgate-prefill-rank"), answer.header("x-kvgate-decode-rank"));
        assert_eq!(answer.header("x-kvgate-prefill"), format!("prefill-0@{}", answer.header("x-kvgate-prefill-rank")));
        assert_eq!(crate::gate::check_gate(&world.journal), 1);
        let got = engines_got(&world);
        assert_eq!(got.len(), 2);
        for headers in got {
            assert_eq!(headers["x-own"], "kept");
            assert!(!headers.contains_key(NAME) && !headers.contains_key("x-encoder-hosts-ports"), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn the_older_name_is_believed_before_the_newer_one() {
    let world = known("").await;
    let named = prefiller(&world);
    let newer = "x-llm-d-prefiller-host-port";
    assert_eq!(path_of(&ask(&world, &[(newer, &named)]).await).1, "pd");
    assert_eq!(path_of(&ask(&world, &[(newer, "10.9.9.9:1"), (NAME, &named)]).await).1, "pd");
}

#[tokio::test]
async fn a_prefiller_that_is_not_allowed_is_never_contacted() {
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let strange = stranger.local_addr().unwrap().to_string();
    for world in
        [known("").await, allowing("--prefill-allow 10.0.0.0/8:*").await, allowing("--prefill-allow 127.0.0.0/8").await]
    {
        for named in [strange.as_str(), "169.254.169.254:80", "kubernetes.default.svc:443"] {
            let answer = ask(&world, &[(NAME, named)]).await;
            assert_eq!((answer.status.as_u16(), &*answer.code()), (403, "prefiller_forbidden"), "{named}");
            assert!(!String::from_utf8_lossy(&answer.body).contains(named), "addresses stay inside");
        }
        assert_eq!((world.prefill.served(), world.decode().served()), (0, 0));
    }
    let called = tokio::time::timeout(Duration::from_millis(100), stranger.accept()).await;
    assert!(called.is_err(), "somebody has connected: {called:?}");
}

#[tokio::test]
async fn a_header_that_names_no_address_is_refused() {
    let world = known("").await;
    for named in ["10.0.0.1", "user@10.0.0.1:80", "10.0.0.1:80/v1", "https://10.0.0.1:80"] {
        let answer = ask(&world, &[(NAME, named)]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "prefiller_invalid"), "{named}");
    }
    assert_eq!(world.decode().served(), 0);
}

#[tokio::test]
async fn of_several_prefillers_the_first_is_taken_and_the_next_when_it_fails() {
    let world = World::new(Setup { pod_local: true, dead_prefill: true, ..Setup::default() }).await;
    let (live, dead) = (prefiller(&world), world.dead_prefill.unwrap().to_string());
    let list = format!("{live}, {dead}");
    let answer = ask(&world, &[(NAME, &list)]).await;
    assert_eq!((path_of(&answer).1, answer.header("x-kvgate-attempts")), ("pd", "1"), "the first one is taken");
    let answer = ask(&world, &[(NAME, &dead), (NAME, &live)]).await;
    assert_eq!(path_of(&answer), (200, "pd", ""));
    assert!(answer.header("x-kvgate-attempts").parse::<u32>().unwrap() > 1, "{answer:?}");
    assert!(answer.header("x-kvgate-prefill").starts_with("prefill-0@"), "{answer:?}");
    let list = format!("10.9.9.9:1,{live}");
    assert_eq!(path_of(&ask(&world, &[(NAME, &list)]).await).1, "pd", "one that is not allowed is passed over");
}

#[tokio::test]
async fn nobody_else_prefills_when_the_named_one_cannot_be_reached() {
    for (args, wanted) in
        [("", (502, "pd", "prefill_unreachable")), ("--fallback local-prefill", (200, "fallback", ""))]
    {
        let world = World::new(Setup { pod_local: true, dead_prefill: true, args, ..Setup::default() }).await;
        let dead = world.dead_prefill.unwrap().to_string();
        let answer = ask(&world, &[(NAME, &dead)]).await;
        let code = if answer.status == 200 { String::new() } else { answer.code() };
        assert_eq!((answer.status.as_u16(), answer.header("x-kvgate-path"), &*code), wanted, "{answer:?}");
        assert_eq!(world.prefill.served(), 0, "the live pod was not named");
    }
}

#[tokio::test]
async fn a_named_prefiller_without_a_sidecar_is_waited_for_in_vain_once() {
    let (_refusing, nobody) = dead_port();
    let world = allowing("--prefill-allow 127.0.0.0/8:*").await;
    world.prefill_sidecar.fall_silent();
    let named = nobody.to_string();
    let answer = ask(&world, &[(NAME, &named)]).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "not_ready"));
    let words = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(words.contains("prefill-0@0 is not followed"), "{words}");
    assert!(!words.contains("127.0.0.1"), "{words}");
    assert_eq!(world.decode().served(), 0);
}

#[tokio::test]
async fn a_gateway_that_knows_ranks_says_the_decode_rank() {
    let world = known("").await;
    let named = prefiller(&world);
    for (header, value, rank) in [
        ("x-data-parallel-rank", "1", "1"),
        ("x-data-parallel-rank", "0", "0"),
        // This router's own port is rank 0's.
        ("x-data-parallel-host-port", "10.0.0.1:8000", "0"),
        ("x-data-parallel-host-port", "10.0.0.1:8001", "1"),
    ] {
        let answer = ask(&world, &[(NAME, &named), (header, value)]).await;
        let ranks = (answer.header("x-kvgate-prefill-rank"), answer.header("x-kvgate-decode-rank"));
        assert_eq!((path_of(&answer).1, ranks), ("pd", (rank, rank)), "{header}: {value}");
        let alone = ask(&world, &[(header, value)]).await;
        assert_eq!((path_of(&alone).1, alone.header("x-kvgate-decode-rank")), ("local", rank), "{header}: {value}");
    }
    for value in ["10.0.0.1:8002", "10.0.0.1:7999"] {
        let answer = ask(&world, &[("x-data-parallel-host-port", value)]).await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "rank_unknown"), "{value}");
    }
    // Whose rank prefills is not the gateway's to say unless clients may say it.
    let answer = ask(&world, &[(NAME, &named), ("x-data-parallel-rank", "0"), ("x-kvgate-prefill-rank", "1")]).await;
    assert_eq!(answer.header("x-kvgate-prefill-rank"), "0");
}

#[tokio::test]
async fn the_pod_is_ready_by_its_own_ranks_and_shows_the_picker_its_engines_figures() {
    let world = allowing("--peer-metrics --prefill-allow 127.0.0.0/8:*").await;
    assert_eq!(world.get("/readyz").await.status.as_u16(), 200, "nobody has named a prefiller yet");
    let page = world.get("/metrics").await;
    assert_eq!(&*page.body, OTHER.as_bytes(), "the engine's, not the router's");
    let named = prefiller(&world);
    assert_eq!(path_of(&ask(&world, &[(NAME, &named)]).await).1, "pd");
    assert_eq!(path_of(&ask(&world, &[]).await).1, "local");
    assert_eq!(ask(&world, &[(NAME, "10.9.9.9:1")]).await.status.as_u16(), 403);
    assert_eq!(ask(&world, &[(NAME, "x")]).await.status.as_u16(), 400);
    let ours = world.get_from(world.operators, "/metrics").await;
    let ours = String::from_utf8(ours.body.to_vec()).unwrap();
    for outcome in ["taken", "absent", "forbidden", "invalid"] {
        let line = format!("router_prefiller_header_total{{outcome=\"{outcome}\"}} 1");
        assert!(ours.lines().any(|have| have == line), "{line} is not in\n{ours}");
    }
    assert!(crate::observed::lists("Router in a decode pod", &ours));
    world.decode_sidecar().set(0, "degraded");
    world.decode_sidecar().set(1, "degraded");
    let unready = async {
        while world.get("/readyz").await.status.as_u16() != 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), unready).await.unwrap();
}

#[tokio::test]
async fn other_paths_go_to_the_pods_engine_without_the_gateways_headers() {
    let world = known("").await;
    let named = prefiller(&world);
    let answer = world.send("POST", "/v1/embeddings", &[(NAME, &named)], r#"{"input":"x"}"#).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, OTHER.as_bytes()));
    let got = engines_got(&world);
    assert!(got.len() == 1 && !got[0].contains_key(NAME), "{got:?}");
}

#[tokio::test]
async fn with_the_direct_gate_the_named_prefiller_is_asked_and_no_receipt() {
    let world = World::new(Setup { pod_local: true, args: "--gate direct", ..Setup::default() }).await;
    let named = prefiller(&world);
    assert_eq!(path_of(&ask(&world, &[(NAME, &named)]).await), (200, "direct", ""));
    assert_eq!((world.prefill.served(), world.decode().served()), (1, 1));
    assert!(world.journal.asked().is_empty());
    assert_eq!(ask(&world, &[(NAME, "10.9.9.9:1")]).await.code(), "prefiller_forbidden");
}
