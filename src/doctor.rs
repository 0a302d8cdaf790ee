//! `kvgate doctor`: what breaks prefill/decode in real pods, each line with its fix. Run it in the sidecar's container: it reads the same
//! `KVGATE_…` variables.
//!
//! | module | looks at |
//! |---|---|
//! | `host` | the kernel's word: `/dev/shm`, memlock, huge pages, RDMA, clock source |
//! | `cma` | whether processes may read one another, by trying |
//! | `nixl`, `tls` | NIXL, plugins, UCX and `UCX_TLS`, as `probe` found them in a process of its own |
//! | `gpus` | GPUs, as another such process opened them: staging on them, and the ways to their memory |
//! | `engine`, `hosts`, `ports` | this pod's engine, what it tells others, the ports that a sidecar needs |
//! | `pods` | two sidecars compared |
//! | `peer`, `measure` | a test transfer from another pod's sidecar |
//! | `line`, `print` | one line, and all of them |
//!
//! Exit code: 0 without a `fail` (warnings are in the report), 2 with one, 64 for a command line that cannot work.

mod child;
mod cma;
mod engine;
mod gpus;
mod host;
mod hosts;
mod line;
#[cfg(test)]
mod machine;
mod measure;
mod nixl;
mod peer;
mod pods;
mod ports;
mod print;
mod probe;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use secrets::Tokens;
use secrets::tls::ClientArgs;
use side_channel::Endpoint;
use sidecar::config::{RoleArg, StagingArg};
use tokio_util::sync::CancellationToken;

use crate::ask::Asker;
use line::{Line, Status};

/// Exit code when a line says `fail`.
const FAILED: u8 = 2;
/// For each HTTP question; the longest is the making of a probe, which loads NIXL's plugins.
const PATIENCE: Duration = Duration::from_secs(10);
/// vLLM's own default for the side channel of rank 0.
const VLLM_SIDE_CHANNEL_PORT: u16 = 5600;

/// `kvgate doctor`'s arguments; those of the sidecar have its names and variables.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the pod's engine does; some checks differ
    #[arg(long, env = "KVGATE_ROLE", value_enum)]
    role: Option<RoleArg>,
    /// The pod's engine
    #[arg(long, env = "KVGATE_ENGINE", value_name = "URL")]
    engine: Option<String>,
    /// The engine's side channel: the port is that of global rank 0 [default: the engine's host, port 5600]
    #[arg(long, env = "KVGATE_ENGINE_SIDE_CHANNEL", value_name = "HOST:PORT_BASE")]
    engine_side_channel: Option<Endpoint>,
    /// Data-parallel ranks in this pod
    #[arg(long, env = "KVGATE_DATA_PARALLEL_SIZE", value_name = "N", default_value_t = 1)]
    data_parallel_size: u16,
    /// The global number of this pod's first rank
    #[arg(long, env = "KVGATE_RANK_OFFSET", value_name = "R", default_value_t = 0)]
    rank_offset: u16,
    /// Where the sidecar's HTTP API listens, or would
    #[arg(long, env = "KVGATE_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Where the sidecar's virtual prefill engines listen, or would
    #[arg(long, env = "KVGATE_SIDE_CHANNEL_LISTEN", value_name = "HOST:PORT_BASE", default_value = "127.0.0.1:7800")]
    side_channel_listen: Endpoint,
    /// The host by which the decode engine reaches the sidecar
    #[arg(long, env = "KVGATE_ADVERTISE_HOST", value_name = "HOST", default_value = "127.0.0.1")]
    advertise_host: String,
    /// Where the sidecar stages, or would
    #[arg(long, env = "KVGATE_STAGING", value_enum, default_value_t = StagingArg::Dram)]
    staging: StagingArg,
    /// Bytes of staging per rank, as in 512MiB
    #[arg(long, env = "KVGATE_STAGING_BYTES", value_name = "PER_RANK", default_value = "2GiB", value_parser = sidecar::config::checked_size)]
    staging_bytes: u64,
    /// GPUs for staging, as the sidecar's container counts them
    #[arg(long, env = "KVGATE_GPUS", value_name = "N,N,…", value_delimiter = ',')]
    gpus: Vec<u32>,
    /// The NIXL C library, or the folder that holds it, instead of searching for one
    #[arg(long, env = "KVGATE_NIXL_LIBRARY", value_name = "PATH")]
    nixl_library: Option<PathBuf>,
    /// A file with the sidecars' bearer token
    #[arg(long, env = "KVGATE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    upstream: ClientArgs,
    /// Set where the sidecar serves HTTPS
    #[arg(long, env = "KVGATE_TLS_CERT", value_name = "FILE", hide = true)]
    tls_cert: Option<PathBuf>,
    /// A sidecar to ask; give two, of a prefill and a decode pod, to have them compared
    #[arg(long = "sidecar", value_name = "URL")]
    sidecars: Vec<String>,
    /// A sidecar of another pod, to read from over NIXL: how fast, how soon
    #[arg(long, value_name = "URL")]
    peer: Option<String>,
    /// Write the report as JSON
    #[arg(long)]
    json: bool,
    /// Play one part of a check, in a process of its own
    #[arg(long, value_enum, hide = true)]
    probe: Option<probe::Part>,
    /// What the reader reads
    #[arg(long, hide = true, value_name = "PID:ADDRESS")]
    probe_of: Option<String>,
}

/// Looks at everything and reports.
///
/// # Errors
/// When the command line cannot work.
pub(crate) async fn run(args: &Args, stop: CancellationToken) -> Result<ExitCode> {
    if let Some(part) = args.probe {
        // It waits for NIXL and for streams: not on a thread of the runtime.
        let (library, of) = (args.nixl_library.clone(), args.probe_of.clone());
        let played = tokio::task::spawn_blocking(move || probe::run(part, library.as_deref(), of.as_deref()));
        return Ok(played.await?);
    }
    let tokens = args.token_file.as_deref().map(Tokens::from_file).transpose()?;
    let asker = Asker::new(tokens.map(|tokens| tokens.header()), args.upstream.check()?, PATIENCE);
    let lines = tokio::select! {
        lines = examine(args, &asker, Path::new("/")) => lines,
        () = stop.cancelled() => return Ok(ExitCode::FAILURE),
    };
    print::report(&lines, args.json);
    let failed = line::worst(&lines) == Status::Fail;
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// Every check, in the order in which a person reads them. `root` is where `/proc` and the like are.
async fn examine(args: &Args, asker: &Asker, root: &Path) -> Vec<Line> {
    let side_channel = engine_side_channel(args);
    let engine_host = side_channel.as_ref().map(|endpoint| endpoint.host.as_str());
    let wanted = ports::Wanted {
        http: args.listen,
        https: args.tls_cert.is_some(),
        side_channel: (args.role != Some(RoleArg::Prefill)).then(|| args.side_channel_listen.clone()),
        ranks: args.data_parallel_size,
    };
    // The token is the sidecars', not the engine's to see.
    let anonymous = asker.anonymous();
    // What waits for others runs side by side; the probes of this machine do not, so as not to disturb each other.
    let of_machine = async {
        let probed = nixl::probe(args.nixl_library.as_deref()).await;
        (probed, gpus::probe().await, cma::line(root).await)
    };
    let ((probed, opened, cma), engine, engine_ranks, host, ports, pods) = tokio::join!(
        of_machine,
        engine::lines(&anonymous, args.engine.as_deref()),
        engine::side_channel(side_channel.as_ref(), args.rank_offset, args.data_parallel_size),
        hosts::line(args.role, engine_host, &args.advertise_host),
        ports::lines(root, asker, &wanted),
        pods::lines(asker, &args.sidecars),
    );
    let settings = nixl::Settings::of_this_process();
    let mut lines = nixl::lines(&probed, &settings);
    lines.push(cma);
    lines.extend(host::lines(root));
    let staging = gpus::Wanted {
        staging: args.staging,
        bytes: (args.role != Some(RoleArg::Prefill)).then_some(args.staging_bytes),
        gpus: args.gpus.clone(),
        ranks: args.data_parallel_size,
    };
    lines.extend(gpus::lines(root, &probed, &opened, &staging, &settings));
    lines.extend(engine);
    lines.extend([engine_ranks, engine::policy(root), host]);
    lines.extend(ports);
    lines.extend(pods);
    // Last, and by itself: it measures.
    lines.push(peer::line(asker, args.peer.as_deref(), args.nixl_library.as_deref()).await);
    lines
}

fn engine_side_channel(args: &Args) -> Option<Endpoint> {
    let of_engine = || {
        let engine: http::Uri = args.engine.as_ref()?.parse().ok()?;
        Some(Endpoint::new(engine.host()?.trim_matches(['[', ']']), VLLM_SIDE_CHANNEL_PORT))
    };
    args.engine_side_channel.clone().or_else(of_engine)
}
