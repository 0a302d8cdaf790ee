//! Engines and sidecars that answer at once, from bytes made beforehand.
//!
//! A decode of N tokens (`"max_tokens":N`) streams N events and `[DONE]`, each with a write of its own as vLLM's server does
//! it, `"seed"` microseconds apart: known fields, which every router passes on.

mod answers;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bench_router::message::{BodyReader, Framing, Malformed, RequestHead, request_head};
use bytes::BytesMut;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use answers::{Answers, Role};

/// Between two comments on an event stream, as the sidecar sends them.
const COMMENT_EVERY: Duration = Duration::from_millis(250);

/// How many of what.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Prefill engines
    #[arg(long, default_value_t = 0)]
    prefill: u16,
    /// Decode engines
    #[arg(long, default_value_t = 0)]
    decode: u16,
    /// Sidecars
    #[arg(long, default_value_t = 0)]
    sidecar: u16,
    /// DP ranks that each sidecar has
    #[arg(long, default_value_t = 1)]
    ranks: u16,
}

/// Why a stub ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StubError {
    #[error("listen")]
    Listen(#[source] std::io::Error),
    #[error("write the addresses to standard output")]
    Addresses(#[source] std::io::Error),
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("read or write")]
    Io(#[from] std::io::Error),
    #[error("understand a request")]
    Request(#[from] Malformed),
}

/// Listens on free ports, prints them as one line of JSON and serves until the process is ended.
pub(crate) async fn run(args: &Args) -> Result<(), StubError> {
    let (answers, tasks) = (Arc::new(Answers::new(args.ranks)), TaskTracker::new());
    let mut addresses = serde_json::Map::new();
    for (name, role, count) in [
        ("prefill", Role::Prefill, args.prefill),
        ("decode", Role::Decode, args.decode),
        ("sidecar", Role::Sidecar, args.sidecar),
    ] {
        let mut of_role = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.map_err(StubError::Listen)?;
            of_role.push(listener.local_addr().map_err(StubError::Listen)?.to_string());
            tasks.spawn(accept(listener, role, Arc::clone(&answers), tasks.clone()));
        }
        addresses.insert(name.to_owned(), json!(of_role));
    }
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::Value::Object(addresses)).map_err(StubError::Addresses)?;
    out.flush().map_err(StubError::Addresses)?;
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn accept(listener: TcpListener, role: Role, answers: Arc<Answers>, tasks: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, _from)) => {
                let answers = Arc::clone(&answers);
                // A connection that breaks is its client's affair: routers cancel by closing.
                tasks.spawn(async move { drop(serve(stream, role, &answers).await) });
            }
            // Out of descriptors, for the moment.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(mut stream: TcpStream, role: Role, answers: &Answers) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    let mut body = BytesMut::new();
    loop {
        let Some(head) = read(&mut stream, &mut buffer, &mut body).await? else { return Ok(()) };
        answers.count(role, &head);
        match role {
            _ if head.is_get && head.path == "/counts" => stream.write_all(&answers.counts()).await?,
            Role::Prefill if !head.is_get => stream.write_all(&answers.prefill).await?,
            Role::Decode if !head.is_get => decode(&mut stream, answers, &body).await?,
            Role::Prefill | Role::Decode => stream.write_all(answers.about_engine(&head.path)).await?,
            Role::Sidecar if head.is_get && head.path.ends_with("/events") => {
                return events(stream, answers).await;
            }
            Role::Sidecar => stream.write_all(answers.of_sidecar(&head, &body)).await?,
        }
    }
}

/// The next request; `None` when the client has closed.
async fn read(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    body: &mut BytesMut,
) -> Result<Option<RequestHead>, ConnectionError> {
    let head = loop {
        if !buffer.is_empty()
            && let Some(head) = request_head(buffer)?
        {
            break head;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    drop(buffer.split_to(head.length));
    body.clear();
    match head.body {
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            while buffer.len() < length {
                if stream.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
            }
            *body = buffer.split_to(length);
        }
        Framing::Chunked => {
            // Kept as it came: what is looked for in it is short and stands in one chunk.
            let mut reader = BodyReader::new(Framing::Chunked);
            loop {
                body.extend_from_slice(buffer);
                if reader.take(buffer)? {
                    break;
                }
                if stream.read_buf(buffer).await? == 0 {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(head))
}

async fn decode(stream: &mut TcpStream, answers: &Answers, body: &[u8]) -> Result<(), ConnectionError> {
    if !answers::is_true(body, b"\"stream\"") {
        stream.write_all(&answers.decode).await?;
        return Ok(());
    }
    let (tokens, pause) = (answers::number(body, b"\"max_tokens\""), answers::number(body, b"\"seed\""));
    let pause = Duration::from_micros(pause.unwrap_or(0));
    stream.write_all(&answers.stream_head).await?;
    for _ in 0..tokens.unwrap_or(1) {
        stream.write_all(&answers.stream_event).await?;
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
    stream.write_all(&answers.stream_end).await?;
    Ok(())
}

/// The states of the ranks, which never change.
async fn events(mut stream: TcpStream, answers: &Answers) -> Result<(), ConnectionError> {
    stream.write_all(&answers.rank_events).await?;
    loop {
        sleep(COMMENT_EVERY).await;
        stream.write_all(&answers.comment).await?;
    }
}
