//! `/v1/probe`: memory with a known pattern, for a measured test transfer (`kvgate doctor --peer`).
//!
//! It has an agent of its own that knows nothing but this memory, so that nothing of a request can be read through it, and goes after some
//! seconds. One at a time: a client can pin [`MAX_BYTES`] at most, whatever becomes of the agent.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use nixl::{AgentName, Closed, Fabric, FabricError, HugePages, Memory, Region};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::fabrics::FabricsError;
use crate::http::Api;
use crate::http::input::JsonBody;
use crate::http::openapi::answers;
use crate::http::transfer_json::whole_ms;
use crate::model::Code;
use crate::problem::{Problem, with_causes};
use crate::staging::{self, StagingError};

/// Every block begins with its offset as a little-endian u64; [`FILL`] follows.
const BLOCK: u16 = 4096;
const FILL: u8 = 0x5a;
const DEFAULT_BYTES: u64 = 64 << 20;
const MIN_BYTES: u64 = 1 << 20;
const MAX_BYTES: u64 = 256 << 20;
const DEFAULT_KEEP: Duration = Duration::from_secs(30);
const MAX_KEEP: Duration = Duration::from_secs(120);
/// NIXL makes an agent in half a second; registering takes some more.
const MADE_WITHIN: Duration = Duration::from_secs(60);
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// The place for the one that is open.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Place>);

#[derive(Debug, Default)]
enum Place {
    #[default]
    Free,
    /// Cancelled to end it.
    Taken(CancellationToken),
    /// By one that is over and whose agent could not be destroyed.
    Stuck,
}

/// Whoever holds this has the place.
struct Taken(Api);

impl Taken {
    fn take(api: &Api) -> Result<(Self, CancellationToken), Problem> {
        let mut place = api.0.probe.0.lock();
        match *place {
            Place::Free => {}
            Place::Taken(_) => {
                let detail = "another test transfer is under way on this sidecar";
                return Err(Problem::new(Code::AttemptConflict, detail));
            }
            Place::Stuck => {
                let detail = "an earlier test transfer's agent could not be destroyed: restart the sidecar";
                return Err(Problem::new(Code::TransferFailed, detail));
            }
        }
        // The gate closes it too: a process that drains takes no new work.
        let done = api.0.gate.child_token();
        *place = Place::Taken(done.clone());
        Ok((Self(api.clone()), done))
    }

    /// The memory stays pinned until the process ends: there is no place for more.
    fn stick(self) {
        *self.0.0.probe.0.lock() = Place::Stuck;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut place = self.0.0.probe.0.lock();
        if matches!(*place, Place::Taken(_)) {
            *place = Place::Free;
        }
    }
}

/// What a test transfer needs.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ProbeBody {
    /// Whole MiB, 64 MiB unless asked for
    #[serde(default)]
    #[schema(minimum = 1_048_576, maximum = 268_435_456, multiple_of = 1_048_576)]
    bytes: Option<u64>,
    /// How long it stays unless it is closed before, 30 s unless asked for
    #[serde(default)]
    #[schema(minimum = 1, maximum = 120_000)]
    keep_ms: Option<u64>,
}

/// Memory that may be read, and the agent that serves it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProbeJson {
    agent: String,
    /// NIXL's metadata of the agent
    metadata_hex: String,
    /// Where the memory begins, in the sidecar's address space
    address: u64,
    bytes: u64,
    pattern: PatternJson,
    keep_ms: u64,
}

/// Every block begins with its offset as a little-endian u64; `fill` follows.
#[derive(Debug, Serialize, ToSchema)]
struct PatternJson {
    block_bytes: u16,
    fill: u8,
}

/// Opens memory with a known pattern for a measured test transfer (`kvgate doctor --peer`): one at a time
#[utoipa::path(
    post,
    path = "/v1/probe",
    operation_id = "open_probe",
    tag = "debugging",
    request_body = ProbeBody,
    responses((status = 201, description = "Open", body = ProbeJson), answers::Probed),
)]
pub(super) async fn open(
    State(api): State<Api>,
    JsonBody(body): JsonBody<ProbeBody>,
) -> Result<(StatusCode, Json<ProbeJson>), Problem> {
    let bytes = body.bytes.unwrap_or(DEFAULT_BYTES);
    if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(MIN_BYTES) {
        return Err(Problem::field("bytes", "must be whole MiB, from 1 MiB to 256 MiB"));
    }
    let keep = body.keep_ms.map_or(DEFAULT_KEEP, Duration::from_millis);
    if keep.is_zero() || keep > MAX_KEEP {
        return Err(Problem::field("keep_ms", "must be from 1 to 120000"));
    }
    if api.0.gate.is_cancelled() {
        return Err(Problem::new(Code::ShuttingDown, "the sidecar is draining"));
    }
    let (taken, done) = Taken::take(&api)?;
    // Once begun it is finished, whether or not the client is still there: what it made goes by itself.
    let opened = api.settled(async move {
        let (taken, opened) = Opened::make(taken, bytes).await?;
        let answer = opened.shown(keep);
        let tasks = taken.0.0.tasks.clone();
        tasks.spawn(opened.keep(keep, done, taken));
        Ok::<ProbeJson, ProbeError>(answer)
    });
    let answer = opened.await?.map_err(|error| {
        warn!(error = %with_causes(&error), "a probe cannot be opened");
        Problem::new(Code::TransferFailed, with_causes(&error))
    })?;
    info!(bytes, keep_ms = whole_ms(keep), "probe opened");
    Ok((StatusCode::CREATED, Json(answer)))
}

/// The test transfer is over; idempotent
#[utoipa::path(
    delete,
    path = "/v1/probe",
    operation_id = "close_probe",
    tag = "debugging",
    responses((status = 204, description = "Closed, or soon"), answers::Always),
)]
pub(super) async fn close(State(api): State<Api>) -> StatusCode {
    if let Place::Taken(done) = &*api.0.probe.0.lock() {
        done.cancel();
    }
    StatusCode::NO_CONTENT
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("name the probe's agent")]
    Name(#[from] nixl::name::AgentNameError),
    #[error(transparent)]
    Agent(#[from] FabricsError),
    #[error("map the probe's memory")]
    Memory(#[from] nixl::MemoryError),
    #[error("fill the probe's memory")]
    Fill(#[from] nixl::AccessError),
    #[error("register the probe's memory")]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    HostMemory(#[from] StagingError),
    #[error("the probe was not made within {MADE_WITHIN:?}")]
    Late,
    #[error("the probe's thread ended without an answer")]
    Thread,
}

/// An agent and the memory that it serves.
struct Opened {
    fabric: Arc<dyn Fabric>,
    region: Region,
    metadata: bytes::Bytes,
}

impl Opened {
    async fn make(taken: Taken, bytes: u64) -> Result<(Taken, Self), ProbeError> {
        staging::check_host(bytes)?;
        let name = AgentName::new(format!("kvgate-probe-{}", uuid::Uuid::new_v4()))?;
        // Every page is touched: not on an async thread.
        let filling = tokio::task::spawn_blocking(move || -> Result<_, ProbeError> {
            let memory = Memory::host(bytes, HugePages::Try)?;
            write_pattern(&memory)?;
            Ok(memory)
        });
        let memory = filling.await.map_err(|_| ProbeError::Thread)??;
        // Plug-ins are loaded: who does not come back keeps the place.
        let (fabrics, tasks) = (Arc::clone(taken.0.pod().fabrics()), taken.0.0.tasks.clone());
        let making = tasks.spawn(async move { (fabrics.serve(name, None).await, taken) });
        let making = timeout(MADE_WITHIN, making).await.map_err(|_late| ProbeError::Late)?;
        let (made, taken) = making.map_err(|_| ProbeError::Thread)?;
        let fabric = made?;
        taken.0.pod().agents().watch(&fabric);
        let registering = async {
            let region = fabric.register(memory).await?;
            Ok((region, fabric.local_metadata().await?))
        };
        match timeout(MADE_WITHIN, registering).await.unwrap_or(Err(ProbeError::Late)) {
            Ok((region, metadata)) => Ok((taken, Self { fabric, region, metadata })),
            Err(error) => {
                end(fabric, taken).await;
                Err(error)
            }
        }
    }

    fn shown(&self, keep: Duration) -> ProbeJson {
        let metadata: String = self.metadata.iter().map(|byte| format!("{byte:02x}")).collect();
        ProbeJson {
            agent: self.fabric.name().as_str().to_owned(),
            metadata_hex: metadata,
            address: self.region.base(),
            bytes: self.region.len(),
            pattern: PatternJson { block_bytes: BLOCK, fill: FILL },
            keep_ms: whole_ms(keep),
        }
    }

    /// Stays until it is told to go, for `keep` at most; the slot is free once the agent has gone.
    async fn keep(self, keep: Duration, done: CancellationToken, taken: Taken) {
        tokio::select! {
            () = sleep(keep) => {}
            () = done.cancelled() => {}
        }
        let Self { fabric, region, metadata: _ } = self;
        drop(region);
        end(fabric, taken).await;
    }
}

/// Closes a probe's agent and gives the place back; not when it cannot be destroyed, for its memory stays pinned.
async fn end(fabric: Arc<dyn Fabric>, taken: Taken) {
    match taken.0.pod().agents().close(vec![fabric], CLOSE_WITHIN).await {
        Closed::Quiet | Closed::Destroyed => drop(taken),
        Closed::Stuck => taken.stick(),
    }
}

fn write_pattern(memory: &Memory) -> Result<(), nixl::AccessError> {
    let mut chunk = vec![FILL; 1 << 20];
    let mut at = 0_u64;
    while at < memory.len() {
        let mut offset = at;
        for block in chunk.chunks_exact_mut(usize::from(BLOCK)) {
            if let Some(head) = block.first_chunk_mut() {
                *head = offset.to_le_bytes();
            }
            offset = offset.saturating_add(u64::from(BLOCK));
        }
        memory.write_at(at, &chunk)?;
        at = offset;
    }
    Ok(())
}
