//! Connections and who may ask what, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use router::router::Ended;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::engines::Decodes;
use crate::journal::Event;
use crate::world::{Setup, World, next};

const BODY: &str = r#"{"prompt":"p"}"#;
const LONG: Duration = Duration::from_secs(20);

fn with(args: &str) -> Setup {
    Setup { args: String::leak(args.to_owned()), ..Setup::default() }
}

/// Reads to the end of a connection, whichever way it ends.
async fn to_the_end(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = timeout(LONG, socket.read_to_end(&mut all)).await.unwrap();
    assert!(read.is_ok() || read.unwrap_err().kind() == ErrorKind::ConnectionReset);
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn a_head_that_dribbles_in_is_not_waited_for() {
    let world = World::new(with("--header-deadline-ms 200")).await;
    for first in ["", "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut socket = TcpStream::connect(world.router).await.unwrap();
        socket.write_all(first.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !first.is_empty() && !answer.ends_with("alive") {
            answer.push(char::from(timeout(LONG, socket.read_u8()).await.unwrap().unwrap()));
        }
        socket.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-slow").await.unwrap();
        assert_eq!(to_the_end(&mut socket).await, "");
    }
    let mut silent = TcpStream::connect(world.router).await.unwrap();
    assert_eq!(to_the_end(&mut silent).await, "");
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_that_answers_is_not() {
    let world = World::new(with("--idle-timeout 200ms --header-deadline-ms 100")).await;
    let mut idle = TcpStream::connect(world.router).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(to_the_end(&mut idle).await.ends_with("alive"));
    world.decode().next(Decodes::Hangs);
    let slow = world.start(BODY);
    world.journal.wait_for("the decode", 1, |event| matches!(event, Event::Decode { .. })).await;
    assert!(
        timeout(Duration::from_millis(800), slow).await.is_err(),
        "nobody closes a connection that is being answered"
    );
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let world = World::new(with("--max-connections 2")).await;
    // The world's client keeps its own connection; this one takes the other place.
    let mut second = TcpStream::connect(world.router).await.unwrap();
    second.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    timeout(LONG, second.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let mut third = TcpStream::connect(world.router).await.unwrap();
    third.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let waits = timeout(Duration::from_millis(300), third.readable()).await;
    assert!(waits.is_err(), "the third is not served");
    drop(second);
    assert!(to_the_end(&mut third).await.ends_with("alive"));
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_in_number() {
    let world = World::new(with("--max-header-bytes 8192 --max-headers 20")).await;
    let long = format!("x-long: {}\r\n", "x".repeat(9000));
    let many: String = (0..30).map(|n| format!("x-{n}: 1\r\n")).collect();
    for headers in [long, many] {
        let mut socket = TcpStream::connect(world.router).await.unwrap();
        let request = format!("GET /livez HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        assert!(to_the_end(&mut socket).await.starts_with("HTTP/1.1 431"));
    }
}

#[tokio::test]
async fn http_2_without_tls_is_spoken_on_the_same_port() {
    let world = World::new(Setup::default()).await;
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request =
        http::Request::post(format!("http://{}/v1/completions", world.router)).body(Full::from(BODY)).unwrap();
    let answer = client.request(request).await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (http::Version::HTTP_2, 200));
    assert!(!answer.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn a_drain_finishes_streams_and_leaves_no_idle_connection() {
    let mut world = World::new(Setup::default()).await;
    let mut idle = TcpStream::connect(world.router).await.unwrap();
    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::Fed(rx));
    tx.send(Bytes::from("data: 1\n\n")).await.unwrap();
    let mut answer = world.open("/v1/completions", r#"{"prompt":"p","stream":true}"#, &[]).await;
    next(answer.body_mut()).await;
    world.stop.cancel();
    while world.get("/readyz").await.json()["draining"] != true {
        tokio::task::yield_now().await;
    }
    tx.send(Bytes::from("data: 2\n\n")).await.unwrap();
    drop(tx);
    let rest = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&*rest, b"data: 2\n\n");
    assert_eq!(timeout(LONG, world.served.take().unwrap()).await.unwrap().unwrap(), Ended::Drained);
    assert_eq!(to_the_end(&mut idle).await, "");
}

fn keys(lines: &[(&str, &str)]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for (key, rest) in lines {
        let hex: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "sha256:{hex} {rest}").unwrap();
    }
    file
}

#[tokio::test]
async fn with_keys_only_their_holders_are_served_and_operators_need_more() {
    let file = keys(&[("ann-key", "name=ann"), ("ops-key", "name=ops admin")]);
    let mut world = World::new(with(&format!("--api-keys-file {}", file.path().display()))).await;
    for (header, status) in [("Bearer nobody", 401), ("Bearer ann-key", 200), ("bearer ops-key", 200)] {
        let answer = world.post("/v1/completions", BODY, &[("authorization", header)]).await;
        assert_eq!(answer.status.as_u16(), status, "{header}: {answer:?}");
        if status == 401 {
            assert_eq!((&*answer.code(), answer.header("www-authenticate")), ("invalid_api_key", "Bearer"));
        }
    }
    let ready = world.get("/readyz").await.json();
    assert!(ready["targets"].as_array().unwrap().len() == 4 && !ready.to_string().contains("127.0.0.1"), "{ready}");
    for path in ["/metrics", "/v1/workers", "/v1/requests?slowest=1", "/v1/log-level", "/debug"] {
        assert_eq!(world.get(path).await.status.as_u16(), 401, "{path}");
    }
    world.bearer = Some("ann-key");
    assert_eq!(world.get("/metrics").await.status.as_u16(), 401, "a client's key is no operator's");
    world.bearer = Some("ops-key");
    assert_eq!(world.get("/metrics").await.status.as_u16(), 200);
    assert!(world.get("/readyz").await.json().to_string().contains("127.0.0.1"));
}

#[tokio::test]
async fn an_operators_token_is_wanted_where_it_is_set() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "t0ken\n").unwrap();
    let mut world = World::new(with(&format!("--admin-token-file {}", file.path().display()))).await;
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200, "clients need nothing");
    assert_eq!(world.get("/metrics").await.status.as_u16(), 401);
    world.bearer = Some("t0ken");
    assert_eq!(world.get("/metrics").await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_key_is_held_to_its_rate_and_its_places() {
    let file = keys(&[("fast", "rate=1"), ("busy", "concurrency=1")]);
    let mut world = World::new(with(&format!("--api-keys-file {}", file.path().display()))).await;
    world.bearer = Some("fast");
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code(), answer.header("retry-after")), (429, "rate_limited", "1"));
    world.bearer = Some("busy");
    world.decode().next(Decodes::Hangs);
    let first = world.start(BODY);
    world.journal.wait_for("the decode", 2, |event| matches!(event, Event::Decode { .. })).await;
    let answer = world.complete(BODY).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (429, "concurrency_limit"));
    first.abort();
}

#[tokio::test]
async fn a_priority_that_is_no_number_is_refused() {
    let world = World::new(Setup::default()).await;
    let answer = world.post("/v1/completions", BODY, &[("x-kvgate-priority", "high")]).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "priority_invalid"));
    let answer = world.post("/v1/completions", BODY, &[("x-kvgate-priority", "9")]).await;
    assert_eq!(answer.status.as_u16(), 200);
}

#[tokio::test]
async fn operators_have_a_port_that_takes_no_work() {
    let file = keys(&[("ann-key", "")]);
    let mut world = World::new(with(&format!("--api-keys-file {}", file.path().display()))).await;
    world.bearer = Some("ann-key");
    assert_eq!(world.complete(BODY).await.status.as_u16(), 200);
    world.bearer = None;
    let record = async |world: &World| world.get_from(world.operators, "/v1/requests").await.json();
    while record(&world).await["requests"].as_array().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(record(&world).await.to_string().contains("127.0.0.1"), "operators see addresses");
    for path in ["/metrics", "/v1/requests", "/livez"] {
        assert_eq!(world.get_from(world.operators, path).await.status.as_u16(), 200, "{path}");
    }
    let ready = world.get_from(world.operators, "/readyz").await.json();
    assert!(ready.to_string().contains("127.0.0.1"), "{ready}");
    let answer = world.get_from(world.operators, "/v1/models").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (404, "not_found"));
}

#[tokio::test]
async fn engines_get_the_clients_key_unless_they_have_one_of_their_own() {
    for (args, seen) in [("", "Bearer mine"), ("--api-key theirs", "Bearer theirs")] {
        let world = World::new(with(args)).await;
        let answer = world.post("/v1/completions", BODY, &[("authorization", "Bearer mine")]).await;
        assert_eq!(answer.status.as_u16(), 200);
        for event in world.journal.events() {
            if let Event::Prefill { headers, .. } | Event::Decode { headers, .. } = event {
                assert_eq!(headers["authorization"], seen);
            }
        }
    }
}

#[tokio::test]
async fn keys_change_with_their_file_while_the_router_runs() {
    let (old, new) = (keys(&[("old-key", "")]), keys(&[("new-key", "")]));
    let world = World::new(with(&format!("--api-keys-file {}", old.path().display()))).await;
    let status = async |key: &str| {
        let header = format!("Bearer {key}");
        world.post("/v1/completions", BODY, &[("authorization", &header)]).await.status.as_u16()
    };
    assert_eq!((status("old-key").await, status("new-key").await), (200, 401));
    std::fs::copy(new.path(), old.path()).unwrap();
    let changed = async {
        while status("new-key").await != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, changed).await.unwrap();
    assert_eq!(status("old-key").await, 401);
}

#[tokio::test]
async fn anthropic_s_clients_are_refused_in_their_own_form() {
    let file = keys(&[("ann-key", "")]);
    let mut world = World::new(with(&format!("--api-keys-file {}", file.path().display()))).await;
    let kind = |json: &serde_json::Value| (json["type"].clone(), json["error"]["type"].clone());
    let json = world.post("/v1/messages", "{}", &[]).await.json();
    assert_eq!(kind(&json), ("error".into(), "authentication_error".into()), "{json}");
    world.bearer = Some("ann-key");
    let json = world.post("/v1/messages", "[]", &[("x-request-id", "mine")]).await.json();
    assert_eq!(kind(&json), ("error".into(), "invalid_request_error".into()), "{json}");
    assert_eq!((&json["request_id"], &json["error"]["code"]), (&"mine".into(), &"body_invalid".into()));
    let json = world.get("/v1/messages").await.json();
    assert_eq!(kind(&json), ("error".into(), "invalid_request_error".into()), "405: {json}");
    let json = world.post("/v1/messages/count_tokens", "[", &[]).await.json();
    assert_eq!(kind(&json), ("error".into(), "invalid_request_error".into()), "{json}");

    let (tx, rx) = mpsc::channel(1);
    world.decode().next(Decodes::FedThenBreaks(rx));
    tx.send(Bytes::from("event: ping\ndata: {\"type\": \"ping\"}\n\n")).await.unwrap();
    let mut answer = world.open("/v1/messages", r#"{"messages":[],"max_tokens":9,"stream":true}"#, &[]).await;
    next(answer.body_mut()).await;
    drop(tx);
    let end = String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let data = end.strip_prefix("event: error\ndata: ").unwrap();
    let json: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(kind(&json), ("error".into(), "api_error".into()), "{json}");
}
