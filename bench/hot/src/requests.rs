//! Whole requests through the router within one thread: a client on a connection in memory, engines and sidecar that answer from bytes
//! made beforehand. What they cost is counted too; it is little and always the same.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axum::body::Body;
use bytes::Bytes;
use clap::Parser;
use futures_util::future::BoxFuture;
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use router::config::Args;
use router::router::{Parts, Router};
use router::upstream::{Payload, Upstream, UpstreamError};
use serde_json::json;
use telemetry::log_filter::LogFilter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::wire;

/// The whole time that one run may take: it is fifty times as slow while it is counted.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the connection in memory holds.
const WIRE: usize = 1 << 16;

/// Whether a sidecar is asked for a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Direct,
    Stage,
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// Both engines and D's sidecar.
#[derive(Debug)]
struct World {
    prefill: Bytes,
    decode: Bytes,
    event: Bytes,
    events: u32,
    rank: Bytes,
    landed: Bytes,
}

impl World {
    fn new(events: u32) -> Self {
        let text = json!({
            "id": "cmpl-bench", "object": "text_completion", "created": 1_700_000_000, "model": "m",
            "choices": [{"index": 0, "text": " word", "logprobs": null, "finish_reason": null, "stop_reason": null}],
        });
        let rank = json!({
            "dp_rank": 0, "local_rank": 0, "state": "ready", "reasons": [], "draining": false,
            "load": {"running": 0, "waiting": 0, "kv_usage": 0.0},
        });
        let landed = json!({
            "transfer_id": "bench-transfer", "state": "landed", "kv_transfer_params": wire::params("virtual_dp0", "bench-landed"),
            "receipt": {
                "dp_rank": 0, "engine_id": "decode_dp0", "virtual_engine_id": "virtual_dp0",
                "source_engine_id": "3b6f0a52-6f1e-4f0e-8f0a-2f6f1d1b3c11_dp0", "request_id": "bench-landed", "blocks": 128,
                "bytes": 67_108_864, "stages_us": {}, "source_lease_left_ms": 29_000, "collect_by_ms": 30_000,
            },
        });
        Self {
            prefill: wire::answer(),
            decode: Bytes::from(text.to_string()),
            event: Bytes::from(format!("data: {text}\n\n")),
            events,
            rank: Bytes::from(format!("event: rank\nid: 1\ndata: {rank}\n\n")),
            landed: Bytes::from(landed.to_string()),
        }
    }

    fn streamed(&self) -> Response<Body> {
        let (event, events) = (self.event.clone(), self.events);
        let events = (0..=events).map(move |number| {
            Ok::<_, std::io::Error>(if number == events {
                Bytes::from_static(b"data: [DONE]\n\n")
            } else {
                event.clone()
            })
        });
        event_stream(Body::from_stream(stream::iter(events)))
    }
}

fn event_stream(body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}

fn whole_body(bytes: &Bytes) -> Response<Body> {
    let mut answer = Response::new(Body::from(bytes.clone()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// The engines and sidecars as the router reaches them.
#[derive(Debug)]
struct Reach(Arc<World>);

impl Upstream for Reach {
    fn send(&self, request: Request<Payload>) -> BoxFuture<'static, Result<Response<Body>, UpstreamError>> {
        let world = Arc::clone(&self.0);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let asked = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            Ok(match (head.uri.host(), head.uri.path()) {
                (Some("p" | "d"), _) if asked.is_empty() => Response::new(Body::empty()),
                (Some("p"), _) => whole_body(&world.prefill),
                (Some("d"), _) if world.events > 0 => world.streamed(),
                (Some("d"), _) => whole_body(&world.decode),
                // The sidecars' event streams go on for as long as they are read.
                (_, "/v1/ranks/events") => {
                    let rank = Ok::<_, std::io::Error>(world.rank.clone());
                    let first = stream::once(std::future::ready(rank));
                    event_stream(Body::from_stream(futures_util::StreamExt::chain(first, stream::pending())))
                }
                (_, "/v1/transfers") => whole_body(&world.landed),
                (_, path) if path.ends_with("/claim") => whole_body(&Bytes::from_static(b"{\"collect_by_ms\":30000}")),
                (..) => whole_body(&Bytes::from_static(b"{}")),
            })
        })
    }
}

/// One client's connection.
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

/// `times` requests, one after the other on a kept connection.
pub(crate) fn whole(times: u32, gate: Gate) -> Result<u64> {
    run(gate, 0, times)
}

/// One request whose answer streams `times` events.
pub(crate) fn chunks(times: u32) -> Result<u64> {
    run(Gate::Direct, times.max(1), 1)
}

fn run(gate: Gate, events: u32, requests: u32) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { timeout(PATIENCE, client(gate, events, requests)).await.context("in time")? })
}

async fn client(gate: Gate, events: u32, requests: u32) -> Result<u64> {
    let name = match gate {
        Gate::Direct => "direct",
        Gate::Stage => "stage",
    };
    let line = format!("router --gate {name} --prefill http://p,sidecar=http://ps --decode http://d,sidecar=http://ds");
    let config = Line::try_parse_from(line.split_whitespace())?.args.check()?;
    let parts = Parts {
        upstream: Arc::new(Reach(Arc::new(World::new(events)))),
        git_sha: "bench",
        id_prefix: "hot".to_owned(),
        observed: LogFilter::new("info", |_| Ok(())).into(),
    };
    let (router, stop, tasks) = (Router::start(config, parts), CancellationToken::new(), TaskTracker::new());
    let (door, connections) = mpsc::channel(1);
    let serving = tasks.spawn(router.serve(Door(connections), stop.clone()));
    let (mut ours, theirs) = duplex(WIRE);
    door.send(theirs).await?;
    let body = wire::chat(events > 0);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();
    let mut buffer = vec![0; 2 * WIRE];
    // Until the pods are known to be ready.
    while exchange(&mut ours, &request, &mut buffer).await? == StatusCode::SERVICE_UNAVAILABLE {
        sleep(Duration::from_millis(1)).await;
    }
    let mut sum = 0;
    for _ in 0..requests {
        let status = exchange(&mut ours, &request, &mut buffer).await?;
        ensure!(
            status == StatusCode::OK,
            "{status}: {}",
            String::from_utf8_lossy(buffer.split(|byte| *byte == 0).next().unwrap_or_default())
        );
        sum += u64::from(status.as_u16());
    }
    drop(ours);
    stop.cancel();
    serving.await?;
    Ok(sum)
}

/// Sends a request and takes the whole answer; its status.
async fn exchange(connection: &mut DuplexStream, request: &[u8], buffer: &mut [u8]) -> Result<StatusCode> {
    connection.write_all(request).await?;
    let (mut filled, mut head, mut status) = (0, None, StatusCode::OK);
    loop {
        let count = connection.read(buffer.get_mut(filled..).context("the answer is too long")?).await?;
        if count == 0 {
            bail!("the router has closed the connection");
        }
        filled += count;
        let got = buffer.get(..filled).unwrap_or_default();
        if head.is_none()
            && let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let text = std::str::from_utf8(got.get(..end).unwrap_or_default())?;
            status = text.get(9..12).context("a status")?.parse()?;
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length: ")).map(str::parse).transpose()?;
            head = Some(length.map(|length: usize| end + 4 + length));
        }
        match head {
            Some(Some(whole)) if filled >= whole => return Ok(status),
            Some(None) if got.ends_with(b"\r\n0\r\n\r\n") => return Ok(status),
            // Of a stream only the end is needed.
            Some(None) if filled > WIRE => {
                buffer.copy_within(filled - 16..filled, 0);
                filled = 16;
            }
            Some(_) | None => {}
        }
    }
}
