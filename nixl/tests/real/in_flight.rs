//! What happens to memory when a transfer is left alone in flight. Over tcp, because there a transfer takes long enough, in
//! processes of their own, because UCX reads `UCX_TLS` once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nixl::{Agent, AgentConfig, Closed, Fabric, FabricError, HugePages, Memory, Reading, Region};

use crate::peer::{DEADLINE, Peer, agent, in_child, nixl_is_there, wait_until};

const LEN: u64 = 256 << 20;
/// UCX warns of each request that an agent is destroyed over: hundreds of lines that are expected here.
const TCP: &[(&str, &str)] = &[("UCX_TLS", "tcp"), ("UCX_LOG_LEVEL", "error")];

/// A transfer of [`LEN`] bytes that has begun to land.
fn begin(agent: &Agent, served: &Peer) -> (Reading, Region) {
    let (reading, region) = post(agent, served, || {});
    let start = Instant::now();
    while landed_mib(&region) < 8 {
        assert!(start.elapsed() < DEADLINE, "the transfer has begun");
    }
    (reading, region)
}

/// A transfer of [`LEN`] bytes that NIXL has accepted after `first` was done.
fn post(agent: &Agent, served: &Peer, first: impl FnOnce()) -> (Reading, Region) {
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(LEN, HugePages::Off).unwrap()).wait().unwrap();
    region.fill(0..LEN, 0).unwrap();
    // The first entry is small: its connection is there before the big one starts.
    agent.read(served.read(&peer, &region, &[(0, 0, 64)])).done.wait().unwrap();
    first();
    let parts: Vec<_> = (0..LEN >> 20).map(|at| (at << 20, at << 20, 1 << 20)).collect();
    let mut reading = agent.read(served.read(&peer, &region, &parts));
    std::mem::replace(&mut reading.posted, nixl::Pending::ready(Ok(()))).wait().unwrap();
    (reading, region)
}

/// MiB blocks of which the last bytes have landed.
fn landed_mib(region: &Region) -> usize {
    let landed = |at: &u64| {
        let mut end = [0; 64];
        region.read_at(((at + 1) << 20) - 64, &mut end).unwrap();
        end != [0; 64]
    };
    (0..region.len() >> 20).filter(landed).count()
}

#[test]
fn dropping_a_transfer_in_flight_leaves_other_memory_untouched() {
    if in_child("in_flight::dropping_a_transfer_in_flight_leaves_other_memory_untouched", TCP).is_some() {
        return;
    }
    let Some(agent) = agent(AgentConfig::pull, "dropper") else { return };
    let served = Peer::start("dropper-served", LEN);
    // A peer that stands still sends nothing: all of it lands after the drop.
    let (reading, region) = post(&agent, &served, || served.pause());
    drop((reading, region));
    wait_until("it is counted", || agent.stats().in_flight == 1);
    let stats = agent.stats();
    assert_eq!((stats.in_flight, stats.in_flight_bytes), (1, LEN), "it is still in flight");
    // Memory of the same size and kind, which the kernel would place where the dropped one was, had it been freed.
    let fresh: Vec<_> = (0..2).map(|_| Memory::host(LEN, HugePages::Off).unwrap()).collect();
    let vec = vec![0x5a_u8; usize::try_from(LEN).unwrap()];
    for memory in &fresh {
        memory.fill(0..LEN, 0x5a).unwrap();
    }
    served.resume();
    wait_until("the transfer ends", || agent.stats().in_flight == 0);
    let mut copy = vec![0; vec.len()];
    for memory in &fresh {
        memory.read_at(0, &mut copy).unwrap();
        assert!(copy == vec, "memory mapped after the drop is untouched");
    }
    assert!(vec.iter().all(|byte| *byte == 0x5a), "memory allocated after the drop is untouched");
    assert_eq!(agent.stats().buried, 0, "it ended well");
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

/// The experiment that design.md §4 asks for: is destroying the agent a proof that no byte lands any more?
#[test]
fn after_closing_an_agent_over_a_transfer_in_flight_its_memory_does_not_change() {
    if !nixl_is_there() {
        return;
    }
    let name = "in_flight::after_closing_an_agent_over_a_transfer_in_flight_its_memory_does_not_change";
    // Small segments make the wire slow, so that the close always comes first.
    if in_child(name, &[TCP, &[("UCX_TCP_TX_SEG_SIZE", "2k")]].concat()).is_some() {
        return;
    }
    let (mut cut_short, mut peers_died) = (0, 0);
    for round in 0..5 {
        let mut served = Peer::start("closer-served", LEN);
        let closer = agent(AgentConfig::pull, &format!("closer-{round}")).unwrap();
        let (reading, region) = begin(&closer, &served);
        let before = landed_mib(&region);
        let start = Instant::now();
        let closed = closer.close(Duration::ZERO).wait().unwrap();
        let took = start.elapsed();
        let mut at_close = vec![0; usize::try_from(LEN).unwrap()];
        region.read_at(0, &mut at_close).unwrap();
        let landed = landed_mib(&region);
        // At the rate measured before, the whole rest would land in this time several times over.
        std::thread::sleep(Duration::from_secs(1));
        let mut later = vec![0; at_close.len()];
        region.read_at(0, &mut later).unwrap();
        let changed = at_close.iter().zip(&later).filter(|(then, now)| then != now).count();
        println!(
            "EXPERIMENT round {round}: {before} of 256 MiB had landed before the close, {landed} after it ({took:?}), \
             {changed} bytes changed in the second after that; {closed:?}; the peer {}",
            if served.alive() { "lives" } else { "has died" }
        );
        peers_died += u32::from(!served.alive());
        assert_eq!(changed, 0, "destroying the agent is a proof of quiet");
        match reading.done.wait() {
            Ok(_) => assert_eq!(closed, Closed::Quiet),
            Err(error) => {
                assert_eq!((error, closed), (FabricError::Abandoned, Closed::Destroyed));
                cut_short += usize::from(landed < 256);
            }
        }
    }
    println!("EXPERIMENT: {cut_short} of 5 transfers were cut short by the close; {peers_died} of 5 peers died of it");
    assert!(cut_short > 0, "the experiment needs a transfer that the close cuts short");
}

#[test]
fn a_peer_that_dies_in_the_middle_fails_the_read_and_its_memory_is_buried() {
    let name = "in_flight::a_peer_that_dies_in_the_middle_fails_the_read_and_its_memory_is_buried";
    // Small segments make the wire slow, so that death comes first.
    if in_child(name, &[TCP, &[("UCX_TCP_TX_SEG_SIZE", "2k")]].concat()).is_some() {
        return;
    }
    let Some(agent) = agent(AgentConfig::pull, "widow") else { return };
    let mut served = Peer::start("widow-served", LEN);
    let (reading, region) = begin(&agent, &served);
    served.kill();
    let error = reading.done.wait().unwrap_err();
    assert!(matches!(error, FabricError::Transfer(_)) && !error.memory_is_quiet(), "{error:?}");
    drop(region);
    wait_until("it is counted", || agent.stats().buried == 1);
    assert_eq!(agent.stats().buried_bytes, LEN);
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Destroyed));
    assert!(!agent.stats().alive);
}
