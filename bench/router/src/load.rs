//! The load generator: so many connections, each with one request after another (a closed loop).
//!
//! One request is one exchange with `--to`; with two addresses it is a prefill at the first and then a decode at the second,
//! as a client does it that needs no router.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bench_router::connection::{Connection, ExchangeError, Exchanged};
use bench_router::pace::Pace;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

/// Longest wait for one request.
const DEADLINE: Duration = Duration::from_secs(60);
/// Latencies are counted up to this, in microseconds.
const LONGEST_US: u64 = 120_000_000;

/// What to send where, and how much of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to: a router or an engine; P and then D when given twice
    #[arg(long, required = true, value_name = "ADDRESS")]
    to: Vec<SocketAddr>,
    /// Connections, each with one request under way
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Requests in all
    #[arg(long, default_value_t = u64::MAX)]
    requests: u64,
    /// Requests a second over all connections, by the clock and not one after the other; what comes late counts from when it was due
    #[arg(long)]
    rate: Option<f64>,
    /// No new requests after so many seconds
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Requests per connection that are not counted
    #[arg(long, default_value_t = 0)]
    warm: u32,
    /// Stream the answers
    #[arg(long)]
    stream: bool,
    /// Tokens to ask for
    #[arg(long, default_value_t = 16)]
    tokens: u64,
    /// Microseconds between two of them
    #[arg(long, default_value_t = 0)]
    pace_us: u64,
    /// Bytes of the prompt
    #[arg(long, default_value_t = 1024)]
    prompt_bytes: usize,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("prepare histograms")]
    Histogram(#[from] hdrhistogram::CreationError),
    #[error("write the results to standard output")]
    Output(#[source] std::io::Error),
}

/// What all connections write down.
#[derive(Debug)]
struct Tally {
    pace: Pace,
    errors: AtomicU64,
    events: AtomicU64,
    figures: Mutex<Figures>,
}

#[derive(Debug)]
struct Figures {
    whole: Histogram<u64>,
    first: Histogram<u64>,
    /// The whole ones of the first half of the time, and of the second.
    halves: [Histogram<u64>; 2],
    /// What went wrong first.
    error: Option<String>,
}

/// Runs the load and prints the results.
pub(crate) async fn run(args: &Args) -> Result<(), LoadError> {
    let empty = || Histogram::new_with_bounds(1, LONGEST_US, 3);
    let figures = Figures { whole: empty()?, first: empty()?, halves: [empty()?, empty()?], error: None };
    let tally = Arc::new(Tally {
        pace: Pace::new(args.requests, args.seconds, args.rate),
        errors: AtomicU64::new(0),
        events: AtomicU64::new(0),
        figures: Mutex::new(figures),
    });
    let legs: Arc<[(SocketAddr, Vec<u8>)]> = legs(args).into();
    let tasks = TaskTracker::new();
    for _ in 0..args.connections {
        tasks.spawn(client(Arc::clone(&legs), Arc::clone(&tally), args.warm));
    }
    tasks.close();
    tasks.wait().await;
    print(&tally, tally.pace.elapsed().as_secs_f64()).map_err(LoadError::Output)
}

fn print(tally: &Tally, seconds: f64) -> std::io::Result<()> {
    let figures = tally.figures.lock();
    let times = |of: &Histogram<u64>| {
        json!({
            "p50": of.value_at_quantile(0.5), "p90": of.value_at_quantile(0.9), "p99": of.value_at_quantile(0.99),
            "mean": of.mean(), "max": of.max(),
        })
    };
    let result = json!({
        "requests": figures.whole.len(), "errors": tally.errors.load(Ordering::Relaxed), "error": figures.error,
        "events": tally.events.load(Ordering::Relaxed), "seconds": seconds,
        "whole_us": times(&figures.whole), "first_us": times(&figures.first),
        "halves_p50_us": figures.halves.each_ref().map(|half| half.value_at_quantile(0.5)),
    });
    writeln!(std::io::stdout(), "{result}")
}

/// The addresses with the bytes that go there.
fn legs(args: &Args) -> Vec<(SocketAddr, Vec<u8>)> {
    let prompt: String = "the quick brown fox ".chars().cycle().take(args.prompt_bytes).collect();
    let decode = json!({
        "model": "stub", "prompt": prompt, "max_tokens": args.tokens, "temperature": 0.7, "seed": args.pace_us,
        "stream": args.stream,
    });
    let [prefill_at, decode_at] = args.to.as_slice() else {
        return args.to.first().map(|to| (*to, request(*to, &decode))).into_iter().collect();
    };
    let (mut prefill, mut decode) = (decode.clone(), decode);
    if let (Value::Object(prefill), Value::Object(decode)) = (&mut prefill, &mut decode) {
        prefill.insert("max_tokens".to_owned(), json!(1));
        prefill.insert("stream".to_owned(), json!(false));
        prefill.insert("kv_transfer_params".to_owned(), json!({"do_remote_decode": true, "do_remote_prefill": false}));
        let params = json!({"do_remote_prefill": true, "remote_engine_id": "e", "remote_request_id": "r",
            "remote_block_ids": [[1, 2, 3]], "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1});
        decode.insert("kv_transfer_params".to_owned(), params);
    }
    vec![(*prefill_at, request(*prefill_at, &prefill)), (*decode_at, request(*decode_at, &decode))]
}

fn request(to: SocketAddr, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {to}\r\naccept: */*\r\nuser-agent: bench\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// One connection's requests.
async fn client(legs: Arc<[(SocketAddr, Vec<u8>)]>, tally: Arc<Tally>, warm: u32) {
    let mut connections: Vec<Connection> = legs.iter().map(|(to, _)| Connection::new(*to)).collect();
    for _ in 0..warm {
        drop(timeout(DEADLINE, one(&legs, &mut connections, Instant::now())).await);
    }
    while let Some(turn) = tally.pace.next().await {
        let begin = turn.since;
        let error = match timeout(DEADLINE, one(&legs, &mut connections, begin)).await {
            Ok(Ok(exchanged)) => {
                let whole = micros(begin.elapsed());
                tally.events.fetch_add(exchanged.events, Ordering::Relaxed);
                let mut figures = tally.figures.lock();
                figures.whole.saturating_record(whole);
                let [early, late] = &mut figures.halves;
                if turn.late { late } else { early }.saturating_record(whole);
                figures.first.saturating_record(micros(exchanged.first.duration_since(begin)));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tally.errors.fetch_add(1, Ordering::Relaxed);
        tally.figures.lock().error.get_or_insert(error);
        for connection in &mut connections {
            connection.close();
        }
    }
}

async fn one(
    legs: &[(SocketAddr, Vec<u8>)],
    connections: &mut [Connection],
    begin: Instant,
) -> Result<Exchanged, ExchangeError> {
    let mut last = Exchanged { first: begin, events: 0 };
    for ((_, request), connection) in legs.iter().zip(connections) {
        last = connection.exchange(request).await?;
    }
    Ok(last)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
