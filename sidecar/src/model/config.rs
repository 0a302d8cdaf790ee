//! What a pod is told at start.

use std::time::Duration;

use kv::digest::Verify;
use side_channel::Endpoint;

use crate::peer_allow::PeerAllow;

/// What the pod's engines do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Produces KV: the sidecar tracks handles and leases.
    Prefill,
    /// Consumes KV: the sidecar stages it.
    Decode,
}

impl Role {
    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Where staging arenas lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StagingKind {
    /// Host memory, huge pages when the kernel gives them.
    Dram,
    /// Host memory that is page-locked for a GPU.
    Pinned,
    /// GPU memory.
    Vram,
}

impl StagingKind {
    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dram => "dram",
            Self::Pinned => "pinned",
            Self::Vram => "vram",
        }
    }

    /// Whether it takes a CUDA driver.
    pub fn needs_gpu(self) -> bool {
        match self {
            Self::Dram => false,
            Self::Pinned | Self::Vram => true,
        }
    }
}

/// How landed bytes are spoilt by a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// Every bit is flipped.
    Flip,
    /// Every byte becomes 0, as if nothing had been read.
    Zero,
}

/// Faults for controls and tests; all off in production.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// What becomes of the bytes that have landed, before the receipt.
    pub spoil: Option<Spoil>,
    /// Waits this long before each READ is posted.
    pub hold_pull: Option<Duration>,
    /// Sends no heartbeats to P.
    pub no_heartbeat: bool,
    /// Makes one peer's wire slow.
    pub slow_wire: Option<SlowWire>,
}

/// A peer whose bytes start to move late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowWire {
    /// The port of its side channel.
    pub port: u16,
    /// How late.
    pub delay: Duration,
}

/// What a pod is told at start.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// What its engines do.
    pub role: Role,
    /// The engine's HTTP address.
    pub engine: http::Uri,
    /// The engine's side channel; the port is that of *global* rank 0 as vLLM counts (`base + global rank`).
    pub engine_side_channel: Endpoint,
    /// Where local rank 0 of the virtual engine listens; local rank `n` gets `port + n`, port 0 means any free one.
    pub side_channel_listen: Endpoint,
    /// The host under which D reaches the virtual engine (`remote_host`).
    pub advertise_host: String,
    /// DP ranks in this pod.
    pub dp_size: u16,
    /// TP shards of each rank.
    pub tp_size: u16,
    /// Global rank of local rank 0.
    pub rank_offset: u16,
    /// Where staging lies.
    pub staging: StagingKind,
    /// The GPUs for it, as this process counts them: one for all, or one for each TP shard of each local rank in turn. None: the engine's own.
    pub gpus: Vec<u32>,
    /// Bytes of staging for each rank (over all its TP shards).
    pub staging_bytes: u64,
    /// How long a transfer waits in line for staging.
    pub staging_wait: Duration,
    /// P's lease on finished blocks; it is not on the wire.
    pub kv_lease: Duration,
    /// How much of what lands is compared with the source (decode role).
    pub verify: Verify,
    /// Zero slots when they are freed.
    pub zero_on_release: bool,
    /// Whom requests may make it connect to (decode role).
    pub peers: PeerAllow,
    /// Injected faults.
    pub faults: Faults,
}
