//! Reads of another process's GPU memory into this one's, beside a plain copy of as many bytes.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use cuda::{DeviceMemory, Gpu};
use nixl::{
    Agent, AgentConfig, AgentName, Fabric as _, LocalDescs, MemKind, Memory, PeerMemory, Read, Region, RemoteDescs,
};

use crate::digest::PAGE;
use crate::report::{Goal, Report};
use crate::source::{Served, agent};
use crate::timing::{gb_per_s, in_turn, timed};

/// Descriptors of a joined read: one per layer.
const LAYERS: u64 = 32;

/// The process that reads, and the one that it reads from.
#[derive(Debug)]
pub(crate) struct Reader {
    agent: Arc<Agent>,
    pub(crate) gpu: Gpu,
    region: Region,
    peer: AgentName,
    remote: PeerMemory,
    base: u64,
    /// Ends when this is dropped: its standard input does.
    source: Child,
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.source.stdin.take());
        drop(self.source.wait());
    }
}

impl Reader {
    pub(crate) fn start(gpu: &Gpu, ordinal: u32, bytes: u64) -> Result<Self> {
        let mut source = Command::new(std::env::current_exe().context("find this program")?)
            .args(["--source", "--gpu", &ordinal.to_string(), "--mib", &(bytes >> 20).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the process that is read from")?;
        let mut line = String::new();
        let out = source.stdout.take().context("its standard output")?;
        BufReader::new(out).read_line(&mut line).context("hear from the process that is read from")?;
        let served: Served = serde_json::from_str(&line).context("the process that is read from has ended")?;
        let agent = agent(gpu, "reader", AgentConfig::pull)?;
        let region = agent.register(Memory::device(bytes, gpu)?).wait().context("register GPU memory")?;
        let peer = agent.load_peer(Bytes::from(served.metadata)).wait().context("load the other agent's metadata")?;
        let ranges = std::iter::once(served.base..served.base + bytes).collect();
        let remote = PeerMemory { kind: MemKind::Vram, device: served.device, ranges };
        Ok(Self { agent, gpu: gpu.clone(), region, peer, remote, base: served.base, source })
    }

    /// Reads `(offset, length)`s to the same offsets.
    pub(crate) fn read(&self, parts: &[(u64, u64)]) -> Result<Duration> {
        timed(|| -> Result<()> {
            let local = LocalDescs::new(&self.region, parts.iter().copied())?;
            let there = parts.iter().map(|(offset, len)| (self.base + offset, *len));
            let remote = RemoteDescs::new(&self.remote, there)?;
            let read = Read { peer: self.peer.clone(), local, remote, notify: None };
            self.agent.read(read).done.wait().context("read GPU memory through NIXL")?;
            Ok(())
        })
    }

    pub(crate) fn measure(&mut self, rounds: u32, report: &mut Report) -> Result<()> {
        let bytes = self.region.len();
        let cut = |each: u64| (0..bytes / each).map(|part| (part * each, each)).collect::<Vec<_>>();
        let (joined, scattered) = (cut((bytes / LAYERS).max(PAGE)), cut(PAGE));
        self.region.fill(0..bytes, 0xff)?;
        self.read(&joined)?;
        self.check()?;
        let (from, to) = (DeviceMemory::new(&self.gpu, bytes)?, DeviceMemory::new(&self.gpu, bytes)?);
        let [copy, whole, apart] = in_turn(
            rounds,
            [&mut || timed(|| to.copy_from(0, &from, 0, bytes)), &mut || self.read(&joined), &mut || {
                self.read(&scattered)
            }],
        )?;
        self.check()?;
        let plain = gb_per_s(bytes, copy);
        report.note(format!("UCX moves bytes by one of: {}", transports()));
        report.row("plain device copy", plain, plain, None);
        let name = format!("NIXL READ, {} descriptors", joined.len());
        report.row(&name, gb_per_s(bytes, whole), plain, Some(Goal("of the plain copy", 0.7)));
        report.row(&format!("NIXL READ, {} descriptors", scattered.len()), gb_per_s(bytes, apart), plain, None);
        Ok(())
    }

    /// Every page begins with its offset.
    fn check(&self) -> Result<()> {
        let pages: Vec<_> = (0..self.region.len() / PAGE).map(|page| page * PAGE..page * PAGE + 8).collect();
        let mut words = vec![0; pages.len() * 8];
        self.region.memory().read_ranges(&pages, &mut words)?;
        let wrong = pages.iter().zip(words.chunks(8)).filter(|(page, word)| **word != page.start.to_le_bytes());
        ensure!(wrong.count() == 0, "what was read is not what the other process has");
        Ok(())
    }
}

fn transports() -> String {
    let found = nixl_sys::ucx::Ucx::of_nixl().and_then(|ucx| ucx.transports());
    let mut names: Vec<String> =
        found.map(|all| all.into_iter().map(|transport| transport.name).collect()).unwrap_or_default();
    names.sort_unstable();
    names.dedup();
    names.join(" ")
}
