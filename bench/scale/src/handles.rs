//! A prefill pod's handles: each is reported to its sidecar and forgotten again as one that has been read, or kept.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bench_router::connection::Connection;
use serde_json::json;

use crate::engines::{HOST, POOL};
use crate::load::{self, Amount, Work, request};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The sidecar
    #[arg(long)]
    sidecar: SocketAddr,
    /// Its ranks
    #[arg(long, default_value_t = 1)]
    ranks: u16,
    /// They stay
    #[arg(long)]
    keep: bool,
    /// Begins the names of these requests
    #[arg(long)]
    name: String,
    #[command(flatten)]
    amount: Amount,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    load::run(args.clone(), &args.amount, client).await
}

async fn client(work: Arc<Work<Args>>) -> Result<()> {
    let mut sidecar = Connection::new(work.args.sidecar);
    let name = &work.args.name;
    while let Some(turn) = work.pace.next().await {
        let (rank, number) = (turn.number % u64::from(work.args.ranks), turn.number);
        let (engine, request_id) = (format!("scale-own_dp{rank}"), format!("{name}-{number}"));
        let body = json!({
            "dp_rank": rank, "remote_request_id": request_id, "remote_engine_id": engine, "lease_ms": 3_600_000, "age_ms": 1,
            "kv_transfer_params": {
                "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [[number % u64::from(POOL)]],
                "remote_engine_id": engine, "remote_request_id": request_id, "remote_host": HOST, "remote_port": 1500,
                "tp_size": 1, "remote_num_tokens": 16,
            },
        });
        let body = body.to_string();
        sidecar.fetch(&request("POST", "/v1/handles", &body)).await.context("a report")?;
        if !work.args.keep {
            let path = format!("/v1/handles/{request_id}?dp_rank={rank}&reason=read");
            sidecar.let_go(&request("DELETE", &path, "")).await.context("a release")?;
        }
        work.times.note(turn.late, turn.since.elapsed());
    }
    Ok(())
}
