//! The test transfer itself, in a process of its own: an agent reads a peer's probe memory a few times and looks at what arrived.

use std::time::Duration;

use nixl::{
    Agent, AgentConfig, AgentName, Fabric, FabricError, HugePages, LocalDescs, MemKind, Memory, PeerMemory, Read,
    Region, RemoteDescs,
};
use nixl_sys::Api;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::ask::with_causes;

/// What the peer's `POST /v1/probe` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probe {
    pub(super) metadata_hex: String,
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) pattern: Pattern,
}

/// Each block begins with its offset (u64, little endian), and goes on with one byte over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pattern {
    pub(super) block_bytes: u64,
    pub(super) fill: u8,
}

/// What was measured. Times in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// From the peer's metadata to the end of the first small read: endpoints are made then.
    pub(super) contact_us: u64,
    /// Small reads after that.
    pub(super) small_p50_us: u64,
    pub(super) small_max_us: u64,
    pub(super) small_bytes: u64,
    /// Reads of the whole memory.
    pub(super) whole_p50_us: u64,
    pub(super) whole_bytes: u64,
    pub(super) gigabytes_per_second: f64,
    pub(super) right: bool,
    pub(super) error: Option<String>,
}

const SMALL: u64 = 4096;
const SMALL_READS: usize = 50;
const WHOLE_READS: usize = 5;
/// Descriptors of the whole read: like blocks of a KV cache that were merged.
const PIECE: u64 = 1 << 20;
/// As the sidecar's own bound: whatever a peer says, no more is mapped here.
const MAX_BYTES: u64 = 256 << 20;
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

impl Measured {
    pub(super) fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }
}

/// Why there is no measure.
#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error("the peer's answer cannot be used: {0}")]
    Answer(&'static str),
    #[error("name the agent")]
    Name(#[from] nixl::name::AgentNameError),
    #[error("make an agent")]
    Agent(#[from] nixl::AgentError),
    #[error("map memory")]
    Memory(#[from] nixl::MemoryError),
    #[error("list what to read")]
    Descs(#[from] nixl::DescError),
    #[error("{what}")]
    Fabric {
        what: &'static str,
        #[source]
        source: FabricError,
    },
    #[error("look at what arrived")]
    Look(#[from] nixl::AccessError),
}

/// Measures; an error is part of the answer.
pub(super) fn run(api: &'static Api, probe: &Probe) -> Measured {
    measured(api, probe).unwrap_or_else(|error| Measured::failed(with_causes(&error)))
}

fn measured(api: &'static Api, probe: &Probe) -> Result<Measured, MeasureError> {
    let name = AgentName::new(format!("kvgate-doctor-{}", std::process::id()))?;
    let agent = Agent::start(api, AgentConfig::pull(name))?;
    let reading = measure(&*agent, probe);
    // What cannot be closed ends with this process.
    drop(agent.close(CLOSE_WITHIN).wait());
    reading
}

/// With any fabric: the tests have one without NIXL.
fn measure(fabric: &dyn Fabric, probe: &Probe) -> Result<Measured, MeasureError> {
    let metadata = bytes_of(&probe.metadata_hex).ok_or(MeasureError::Answer("metadata_hex is not hexadecimal"))?;
    if !(PIECE..=MAX_BYTES).contains(&probe.bytes)
        || !probe.bytes.is_multiple_of(PIECE)
        || probe.pattern.block_bytes < 16
        || !PIECE.is_multiple_of(probe.pattern.block_bytes)
    {
        return Err(MeasureError::Answer("bytes or pattern out of bounds"));
    }
    let end = probe.address.checked_add(probe.bytes).ok_or(MeasureError::Answer("the address leaves memory"))?;
    let failed = |what| move |source| MeasureError::Fabric { what, source };
    let here = fabric.register(Memory::host(probe.bytes, HugePages::Try)?).wait().map_err(failed("register memory"))?;
    let start = Instant::now();
    let peer = fabric.load_peer(metadata.into()).wait().map_err(failed("load the peer's metadata"))?;
    let ranges = std::iter::once(probe.address..end).collect();
    let source = Source { peer, memory: PeerMemory { kind: MemKind::Dram, device: 0, ranges }, base: probe.address };

    source.read(fabric, &here, [(0, SMALL)])?;
    let contact = start.elapsed();
    let mut small = Vec::new();
    for _ in 0..SMALL_READS {
        small.push(source.read(fabric, &here, [(0, SMALL)])?);
    }
    here.fill(0..probe.bytes, 0)?;
    let mut whole = Vec::new();
    for _ in 0..WHOLE_READS {
        whole.push(source.read(fabric, &here, (0..probe.bytes / PIECE).map(|piece| (piece * PIECE, PIECE)))?);
    }
    let whole_p50 = median(&mut whole);
    Ok(Measured {
        contact_us: micros(contact),
        small_p50_us: micros(median(&mut small)),
        small_max_us: micros(small.last().copied().unwrap_or_default()),
        small_bytes: SMALL,
        whole_p50_us: micros(whole_p50),
        whole_bytes: probe.bytes,
        gigabytes_per_second: gigabytes_per_second(probe.bytes, whole_p50),
        right: is_right(&here, probe)?,
        error: None,
    })
}

/// Where bytes come from.
struct Source {
    peer: AgentName,
    memory: PeerMemory,
    base: u64,
}

impl Source {
    /// Reads `(offset, length)`s to the same offsets here, and says how long that took.
    fn read(
        &self,
        fabric: &dyn Fabric,
        here: &Region,
        parts: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<Duration, MeasureError> {
        let parts: Vec<(u64, u64)> = parts.into_iter().collect();
        let there = parts.iter().map(|(offset, len)| (self.base.saturating_add(*offset), *len));
        let read = Read {
            peer: self.peer.clone(),
            remote: RemoteDescs::new(&self.memory, there)?,
            local: LocalDescs::new(here, parts.iter().copied())?,
            notify: None,
        };
        let done = fabric.read(read).done.wait();
        let done = done.map_err(|source| MeasureError::Fabric { what: "read from the peer", source })?;
        Ok(done.wire.max(done.post))
    }
}

fn is_right(here: &Region, probe: &Probe) -> Result<bool, nixl::AccessError> {
    let size = usize::try_from(probe.pattern.block_bytes).unwrap_or(usize::MAX).min(1 << 20);
    let mut block = vec![0_u8; size];
    let mut offset = 0;
    while offset < probe.bytes {
        here.read_at(offset, &mut block)?;
        let right = match block.split_first_chunk() {
            Some((head, rest)) => *head == offset.to_le_bytes() && rest.iter().all(|byte| *byte == probe.pattern.fill),
            None => false,
        };
        if !right {
            return Ok(false);
        }
        offset = offset.saturating_add(probe.pattern.block_bytes);
    }
    Ok(true)
}

/// Sorts, and answers the middle one.
fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn gigabytes_per_second(bytes: u64, time: Duration) -> f64 {
    // At most 256 MiB: exact.
    let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
    if time.is_zero() { 0.0 } else { bytes / time.as_secs_f64() / 1e9 }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = hex.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| if let [high, low] = pair { Some(digit(high)? << 4 | digit(low)?) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nixl::loopback::LoopbackNet;

    /// A source on the loopback network; `spoil` may change its memory.
    fn measured_after(spoil: impl FnOnce(&Region)) -> Measured {
        let net = LoopbackNet::new();
        let source = net.agent(AgentName::new("source").unwrap());
        let there = source.register(Memory::host(2 << 20, HugePages::Off).unwrap()).wait().unwrap();
        there.fill(0..2 << 20, 0x5a).unwrap();
        for offset in (0..2_u64 << 20).step_by(4096) {
            there.write_at(offset, &offset.to_le_bytes()).unwrap();
        }
        spoil(&there);
        let metadata = source.local_metadata().wait().unwrap();
        let probe = Probe {
            metadata_hex: metadata.iter().map(|byte| format!("{byte:02x}")).collect(),
            address: there.base(),
            bytes: 2 << 20,
            pattern: Pattern { block_bytes: 4096, fill: 0x5a },
        };
        measure(&*net.agent(AgentName::new("doctor").unwrap()), &probe).unwrap()
    }

    #[test]
    fn right_bytes_are_right_and_one_wrong_byte_is_not() {
        let measured = measured_after(|_| ());
        assert!(measured.right && measured.whole_bytes == 2 << 20 && measured.error.is_none(), "{measured:?}");
        assert!(!measured_after(|there| there.write_at(1 << 20, b"x").unwrap()).right);
        assert!(!measured_after(|there| there.write_at((2 << 20) - 1, b"x").unwrap()).right);
    }

    #[test]
    fn answers_out_of_bounds_are_refused() {
        let fabric = LoopbackNet::new().agent(AgentName::new("doctor").unwrap());
        let good = Probe {
            metadata_hex: String::new(),
            address: 4096,
            bytes: 1 << 20,
            pattern: Pattern { block_bytes: 4096, fill: 0 },
        };
        for bad in [
            Probe { metadata_hex: "abc".to_owned(), ..good.clone() },
            Probe { metadata_hex: "zz".to_owned(), ..good.clone() },
            Probe { bytes: 1 << 40, ..good.clone() },
            Probe { address: u64::MAX, ..good.clone() },
            Probe { pattern: Pattern { block_bytes: 0, fill: 0 }, ..good },
        ] {
            assert!(matches!(measure(&*fabric, &bad), Err(MeasureError::Answer(_))), "{bad:?}");
        }
        assert_eq!(bytes_of("00ffA5"), Some(vec![0, 255, 165]));
    }
}
