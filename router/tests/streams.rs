//! Streams over a network in memory and with paused time: slow clients, slow engines, comments while P works.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use clap::Parser;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use router::config::Args;
use router::router::{Parts, Router};
use router::upstream::{Payload, Upstream, UpstreamError};
use serde_json::json;
use telemetry::log_filter::LogFilter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a network's buffer between router and client holds.
const WIRE: usize = 4096;
/// Every event is as long as this.
const EVENT: usize = 1024;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// What the engines do.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// D streams as fast as it is read.
    Endless,
    /// D streams so many events, one after each pause.
    Paced { events: u32, pause: Duration },
    /// D has 20 events at once; the last one follows this long after they have been taken.
    ThenOne(Duration),
    /// P takes its time, then answers so.
    SlowPrefill(Duration, StatusCode),
}

/// Both engines, and the bytes that D has handed out.
#[derive(Debug)]
struct Engines {
    script: Script,
    given: Arc<AtomicU64>,
}

fn event(text: &str) -> Bytes {
    Bytes::from(format!("data: {text:<width$}\n\n", width = EVENT - 8))
}

impl Upstream for Engines {
    fn send(&self, request: Request<Payload>) -> BoxFuture<'static, Result<Response<Body>, UpstreamError>> {
        let (script, given) = (self.script, Arc::clone(&self.given));
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            if text.is_empty() {
                return Ok(Response::new(Body::empty()));
            }
            Ok(match head.uri.host() {
                Some("p") => {
                    let id = head.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap();
                    prefill(script, id).await
                }
                _ => decode(script, given),
            })
        })
    }
}

async fn prefill(script: Script, id: &str) -> Response<Body> {
    if let Script::SlowPrefill(wait, status) = script {
        sleep(wait).await;
        if !status.is_success() {
            let mut answer = Response::new(Body::from("{\"error\":\n{\"code\":400}}"));
            *answer.status_mut() = status;
            return answer;
        }
    }
    let params = json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[1]], "remote_engine_id": "p",
        "remote_request_id": format!("cmpl-{id}-0-12345678"), "remote_host": "p", "remote_port": 5600, "tp_size": 1,
        "dcp_size": 1, "pp_size": 1, "remote_num_tokens": 9, "transfer_mode": "pull",
    });
    Response::new(Body::from(json!({ "kv_transfer_params": params }).to_string()))
}

fn decode(script: Script, given: Arc<AtomicU64>) -> Response<Body> {
    let events = stream::unfold(0_u32, move |sent| {
        let given = Arc::clone(&given);
        async move {
            match script {
                Script::Endless => {}
                Script::Paced { events, pause } => {
                    if sent == events {
                        return None;
                    }
                    sleep(pause).await;
                }
                Script::ThenOne(pause) => match sent {
                    0..20 => {}
                    20 => sleep(pause).await,
                    _ => return None,
                },
                Script::SlowPrefill(..) => {
                    if sent == 3 {
                        return None;
                    }
                }
            }
            given.fetch_add(EVENT as u64, Ordering::Relaxed);
            Some((Ok::<_, std::io::Error>(event(&sent.to_string())), sent + 1))
        }
    });
    let mut answer = Response::new(Body::from_stream(events));
    answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
    answer
}

/// Takes the router's ends of connections from the test.
struct Door(mpsc::Receiver<DuplexStream>);

impl axum::serve::Listener for Door {
    type Io = DuplexStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (DuplexStream, std::net::SocketAddr) {
        match self.0.recv().await {
            Some(connection) => (connection, ([127, 0, 0, 1], 1).into()),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        Ok(([127, 0, 0, 1], 2).into())
    }
}

/// A router between the engines and whoever connects.
struct World {
    door: mpsc::Sender<DuplexStream>,
    given: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl World {
    async fn new(script: Script, args: &str) -> Self {
        let line =
            format!("router --gate direct --prefill http://p --decode http://d --client-deadline-ms 86400000 {args}");
        let config = Line::try_parse_from(line.split_whitespace()).unwrap().args.check().unwrap();
        let given = Arc::<AtomicU64>::default();
        let upstream = Arc::new(Engines { script, given: Arc::clone(&given) });
        let observed = LogFilter::new("info", |_| Ok(())).into();
        let router = Router::start(config, Parts { upstream, git_sha: "abc", id_prefix: "test".to_owned(), observed });
        let (door, connections) = mpsc::channel(1);
        let stop = CancellationToken::new();
        TaskTracker::new().spawn(router.serve(Door(connections), stop.clone()));
        // The first health checks take no time here.
        sleep(Duration::from_millis(10)).await;
        Self { door, given, stop }
    }

    /// Sends a request for a stream; the answer waits in the connection.
    async fn ask(&self) -> DuplexStream {
        let (mut ours, theirs) = duplex(WIRE);
        self.door.send(theirs).await.unwrap();
        let body = r#"{"prompt":"p","stream":true}"#;
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nhost: r\r\nconnection: close\r\ncontent-length: {}", body.len());
        ours.write_all(format!("{head}\r\ncontent-type: application/json\r\n\r\n{body}").as_bytes()).await.unwrap();
        ours
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn rest(mut connection: DuplexStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(start_paused = true)]
async fn a_thousand_clients_that_do_not_read_cost_bounded_memory() {
    let world = World::new(Script::Endless, "").await;
    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(world.ask().await);
    }
    // With paused time this returns when nothing can go on any more.
    sleep(Duration::from_secs(1)).await;
    let given = world.given.load(Ordering::Relaxed);
    assert!(given >= 1000 * EVENT as u64, "all answers have begun: {given}");
    assert!(given <= 1000 * 24 * EVENT as u64, "each holds what the wire and one write take: {given}");
    // Nobody is stuck: who reads gets more.
    let mut buffer = vec![0; 256 * EVENT];
    for client in clients.iter_mut().take(20) {
        client.read_exact(&mut buffer).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let more = world.given.load(Ordering::Relaxed) - given;
    assert!(
        (20 * 250 * EVENT as u64..=20 * 262 * EVENT as u64).contains(&more),
        "the engine gave what was taken: {more}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_as_long_as_it_goes_on() {
    let pause = Duration::from_millis(900);
    let world = World::new(Script::Paced { events: 1000, pause }, "--idle-deadline-ms 1000").await;
    let begun = Instant::now();
    let answer = rest(world.ask().await).await;
    assert!(begun.elapsed() >= 1000 * pause);
    assert!(answer.contains("data: 999 ") && !answer.contains("error"));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_silent_between_two_events_ends_the_stream() {
    let pause = Duration::from_millis(1100);
    let world = World::new(Script::ThenOne(pause), "--idle-deadline-ms 1000").await;
    let answer = rest(world.ask().await).await;
    assert!(answer.contains("data: 19 ") && answer.contains("decode_timeout") && answer.ends_with("\r\n0\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_pauses_is_no_silence_of_the_engine() {
    let world = World::new(Script::ThenOne(Duration::from_millis(500)), "--idle-deadline-ms 1000").await;
    let client = world.ask().await;
    sleep(Duration::from_secs(3600)).await;
    let given = world.given.load(Ordering::Relaxed);
    assert!(given < 21 * EVENT as u64, "the engine was waiting for the client: {given}");
    let answer = rest(client).await;
    assert!(answer.contains("data: 20 ") && !answer.contains("error"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn comments_keep_a_stream_alive_while_the_prefill_works_for_longer_than_a_minute() {
    let script = Script::SlowPrefill(Duration::from_millis(75_500), StatusCode::OK);
    let world = World::new(script, "--sse-keepalive-ms 1000").await;
    let answer = rest(world.ask().await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("content-type: text/event-stream"));
    assert_eq!(answer.matches(": keep-alive\n\n").count(), 75);
    assert!(answer.contains("data: 2 ") && answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn after_a_comment_an_error_comes_as_an_event() {
    let script = Script::SlowPrefill(Duration::from_millis(1500), StatusCode::BAD_REQUEST);
    let world = World::new(script, "--sse-keepalive-ms 1000").await;
    let answer = rest(world.ask().await).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(answer.contains("data: {\"error\":\ndata: {\"code\":400}}\n\n"), "{answer}");
    assert!(answer.ends_with("\r\n0\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn before_the_first_comment_an_error_keeps_its_status() {
    let script = Script::SlowPrefill(Duration::from_millis(500), StatusCode::BAD_REQUEST);
    let world = World::new(script, "--sse-keepalive-ms 1000").await;
    let answer = rest(world.ask().await).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(!answer.contains("keep-alive"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_comments_are_sent_takes_its_request_along() {
    let script = Script::SlowPrefill(Duration::from_secs(10_000), StatusCode::OK);
    let world = World::new(script, "--sse-keepalive-ms 1000 --prefill-deadline-ms 80000000 --max-in-flight 1").await;
    let mut client = world.ask().await;
    let mut seen = vec![0; 400];
    client.read_exact(&mut seen).await.unwrap();
    assert!(String::from_utf8(seen).unwrap().contains(": keep-alive"));
    drop(client);
    sleep(Duration::from_secs(5)).await;
    let mut next = world.ask().await;
    let begun = Instant::now();
    let mut seen = vec![0; 200];
    next.read_exact(&mut seen).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "its place is free");
}
