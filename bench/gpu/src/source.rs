//! The process that is read from, as the sidecar's `serve` agent holds its staging.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use cuda::Gpu;
use nixl::{Agent, AgentConfig, AgentName, Fabric as _, Memory};
use serde::{Deserialize, Serialize};

use crate::digest::PAGE;

/// What a reader needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) base: u64,
    pub(crate) device: u64,
    pub(crate) metadata: Vec<u8>,
}

/// Serves `bytes` of the GPU's memory, in which each page begins with its own offset, until standard input ends.
pub(crate) fn serve(gpu: &Gpu, bytes: u64) -> Result<()> {
    let memory = Memory::device(bytes, gpu)?;
    let pages: Vec<_> = (0..bytes / PAGE).map(|page| page * PAGE..page * PAGE + 8).collect();
    let words: Vec<u8> = pages.iter().flat_map(|page| page.start.to_le_bytes()).collect();
    memory.write_ranges(&pages, &words)?;
    let agent = agent(gpu, "source", AgentConfig::serve)?;
    let region = agent.register(memory).wait().context("register GPU memory")?;
    let served = Served {
        base: region.base(),
        device: region.memory().device_id(),
        metadata: agent.local_metadata().wait()?.to_vec(),
    };
    let mut out = stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&served)?)?;
    out.flush()?;
    stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// An agent as the sidecar makes it, with the GPU's context current on its thread.
pub(crate) fn agent(gpu: &Gpu, name: &str, config: impl FnOnce(AgentName) -> AgentConfig) -> Result<Arc<Agent>> {
    let api = nixl_sys::Api::load(None)?;
    let name = AgentName::new(format!("bench-gpu-{name}-{}", std::process::id()))?;
    Agent::start(api, AgentConfig { gpu: Some(gpu.clone()), ..config(name) }).context("make the agent")
}
