//! Connections that are only held: clients between two requests, or routers that follow the states of a pod's ranks.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::{say, until_told};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to
    #[arg(long)]
    to: SocketAddr,
    /// How many
    #[arg(long)]
    connections: u32,
    /// What is asked on each; an answer that does not end is read for as long as it goes on
    #[arg(long)]
    path: String,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    let (tasks, request) = (TaskTracker::new(), format!("GET {} HTTP/1.1\r\nhost: bench\r\n\r\n", args.path));
    for _ in 0..args.connections {
        let mut stream = TcpStream::connect(args.to).await.context("connect")?;
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = vec![0; 16 << 10];
        let count = stream.read(&mut buffer).await?;
        let begun = buffer.get(..count).unwrap_or_default();
        anyhow::ensure!(begun.starts_with(b"HTTP/1.1 200"), "no answer: {}", String::from_utf8_lossy(begun));
        tasks.spawn(async move { while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {} });
    }
    say(&json!({ "held": args.connections }));
    until_told().await
}
