//! The process whose memory is read, as the sidecar's `serve` agent holds its own.

use std::io::{Read as _, stdin};

use anyhow::Result;
use nixl::{Agent, Fabric as _, HugePages, Memory};
use serde_json::json;

use crate::work::{PAGE, say};

/// Serves `bytes` of memory in ordinary pages, as an engine allocates its cache, until standard input ends.
pub(crate) fn serve(agent: &Agent, bytes: u64) -> Result<()> {
    let memory = Memory::host(bytes, HugePages::Off)?;
    fill(|offset, word| Ok(memory.write_at(offset, word)?), bytes)?;
    let region = agent.register(memory).wait()?;
    let metadata = agent.local_metadata().wait()?;
    let hex: Vec<String> = metadata.iter().map(|byte| format!("{byte:02x}")).collect();
    say(&json!({ "base": region.base(), "bytes": bytes, "metadata": hex.concat() }))?;
    stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Touches every page; its first word is its offset.
pub(crate) fn fill(mut write: impl FnMut(u64, &[u8]) -> Result<()>, bytes: u64) -> Result<()> {
    (0..bytes / PAGE).try_for_each(|page| write(page * PAGE, &(page * PAGE).to_ne_bytes()))
}

/// What UCX may move bytes by between two processes of this machine.
pub(crate) fn machine(agent: &Agent) -> Result<()> {
    let ucx = nixl_sys::ucx::Ucx::of_nixl()?;
    let mut found: Vec<String> = ucx.transports()?.into_iter().map(|transport| transport.name).collect();
    found.sort_unstable();
    found.dedup();
    let origin = nixl_sys::Api::loaded().map(|api| api.origin().version.clone());
    say(&json!({ "ucx": ucx.version(), "nixl": origin, "transports": found, "agent": agent.name().as_str() }))
}
