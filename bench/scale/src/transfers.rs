//! Transfers of one block each, over the ranks in turn: asked for, landed, and collected at once unless they are to be kept.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bench_router::connection::Connection;
use bench_router::pace::Turn;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::engines::POOL;
use crate::load::{self, Amount, Work, request};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The sidecar
    #[arg(long)]
    sidecar: SocketAddr,
    /// Where D's collections are told
    #[arg(long)]
    collect: SocketAddr,
    /// P, as its parameters name it: ENGINE@HOST:PORT
    #[arg(long, value_parser = prefill)]
    prefill: Prefill,
    /// The sidecar's ranks
    #[arg(long, default_value_t = 1)]
    ranks: u16,
    /// What has landed stays, and its claim is renewed once
    #[arg(long)]
    keep: bool,
    /// Begins the names of these transfers
    #[arg(long)]
    name: String,
    #[command(flatten)]
    amount: Amount,
}

#[derive(Clone, Debug)]
struct Prefill {
    engine: String,
    host: String,
    port: u16,
}

fn prefill(text: &str) -> Result<Prefill, String> {
    let parts = || {
        let (engine, at) = text.split_once('@')?;
        let (host, port) = at.split_once(':')?;
        Some(Prefill { engine: engine.to_owned(), host: host.to_owned(), port: port.parse().ok()? })
    };
    parts().ok_or_else(|| "must be ENGINE@HOST:PORT".to_owned())
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    load::run(args.clone(), &args.amount, client).await
}

async fn client(work: Arc<Work<Args>>) -> Result<()> {
    let mut sidecar = Connection::new(work.args.sidecar);
    let mut collect = TcpStream::connect(work.args.collect).await?;
    collect.set_nodelay(true)?;
    while let Some(turn) = work.pace.next().await {
        let rank = u16::try_from(turn.number % u64::from(work.args.ranks)).unwrap_or(0);
        let answer = sidecar.fetch(&ask(&work.args, turn, rank)).await.context("a transfer")?;
        if !work.args.keep {
            work.times.note(turn.late, turn.since.elapsed());
        }
        let answer: Value = serde_json::from_slice(&answer)?;
        let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).context("a receipt");
        if work.args.keep {
            let path = format!("/v1/transfers/{}/claim", text("/transfer_id")?);
            let since = Instant::now();
            sidecar.fetch(&request("POST", &path, "{}")).await.context("a claim")?;
            work.times.note(turn.late, since.elapsed());
        } else {
            collect.write_all(format!("{rank} {}\n", text("/receipt/request_id")?).as_bytes()).await?;
        }
    }
    Ok(())
}

fn ask(args: &Args, turn: Turn, rank: u16) -> Vec<u8> {
    let name = format!("{}-{}", args.name, turn.number);
    let Prefill { engine, host, port } = &args.prefill;
    let body = json!({
        "attempt_id": name, "request_id": "scale", "dp_rank": rank, "deadline_ms": 20_000, "lease_ms": 3_600_000,
        "prefill_done_age_ms": 1,
        "kv_transfer_params": {
            "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[turn.number % u64::from(POOL)]],
            "remote_engine_id": engine, "remote_request_id": name, "remote_host": host, "remote_port": port,
            "tp_size": 1, "remote_num_tokens": 16,
        },
    });
    request("POST", "/v1/transfers", &body.to_string())
}
