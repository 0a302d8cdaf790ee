//! Many descriptors, many transfers, many agents.

use std::{
    collections::VecDeque,
    fs,
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nixl::{AgentConfig, Closed, Fabric, HugePages, Memory};

use crate::peer::{DEADLINE, Peer, agent, in_child, nixl_is_there, pattern, wait_until};

#[test]
fn twenty_thousand_descriptors_of_256_bytes_land_in_one_read() {
    const COUNT: u64 = 20_000;
    let Some(agent) = agent(AgentConfig::pull, "finely-cut") else { return };
    // Every second piece at the peer, in reverse order here: nothing can be merged.
    let served = Peer::start("finely-cut-served", 2 * 256 * COUNT);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(256 * COUNT, HugePages::Off).unwrap()).wait().unwrap();
    let parts: Vec<_> = (0..COUNT).map(|at| (2 * at * 256, (COUNT - 1 - at) * 256, 256)).collect();
    let done = agent.read(served.read(&peer, &region, &parts)).done.wait().unwrap();
    assert_eq!((done.bytes, done.descs), (256 * COUNT, 20_000));
    println!("20000 descriptors of 256 B: post {:?}, wire {:?}", done.post, done.wire);
    let mut piece = [0; 256];
    for (from, to, _) in parts {
        region.read_at(to, &mut piece).unwrap();
        assert!(piece.iter().zip(from..).all(|(byte, at)| *byte == pattern(at)), "the piece at {from}");
    }
    drop(region);
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

/// Memory of this process that is in use, in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn fifty_thousand_reads_of_4_kib_over_tcp_leave_memory_as_it_was() {
    const AT_A_TIME: usize = 32;
    let name = "many::fifty_thousand_reads_of_4_kib_over_tcp_leave_memory_as_it_was";
    if in_child(name, &[("UCX_TLS", "tcp")]).is_some() {
        return;
    }
    let Some(agent) = agent(AgentConfig::pull, "busy") else { return };
    let served = Peer::start("busy-served", 1 << 20);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(4096 * 32, HugePages::Off).unwrap()).wait().unwrap();
    let read = |count: u64| {
        let mut reading = VecDeque::new();
        for number in 0..count {
            let part = ((number % 251) * 4096, (number % 32) * 4096, 4096);
            reading.push_back(agent.read(served.read(&peer, &region, &[part])).done);
            if reading.len() == AT_A_TIME {
                reading.pop_front().unwrap().wait().unwrap();
            }
        }
        for done in reading {
            done.wait().unwrap();
        }
    };
    // Pools of NIXL and UCX fill up to what so many reads at a time need.
    read(10_000);
    let (before, start) = (resident_kib(), Instant::now());
    read(40_000);
    let after = resident_kib();
    println!("reads 10001 to 50000 in {:?}: {before} KiB resident before, {after} KiB after", start.elapsed());
    // A leak of 100 bytes per read would show.
    assert!(after < before + 4_000, "{before} KiB became {after} KiB");
    // The agent counts at the end of a lap, after it has answered.
    wait_until("all are counted", || agent.stats().in_flight == 0);
    let stats = agent.stats();
    assert_eq!((stats.buried, stats.failed_cleanups), (0, 0));
    drop(region);
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

#[test]
fn eight_agents_that_start_at_once_are_all_there_in_time() {
    if !nixl_is_there() {
        return;
    }
    // In a process of its own: the first agent of a process loads the plugins.
    if in_child("many::eight_agents_that_start_at_once_are_all_there_in_time", &[]).is_some() {
        return;
    }
    let (there, started) = mpsc::channel();
    let start = Instant::now();
    for number in 0..8 {
        let there = there.clone();
        std::thread::spawn(move || there.send(agent(AgentConfig::serve, &format!("at-once-{number}")).unwrap()));
    }
    // A watchdog: a start that hangs ends the test, not the patience of who runs it.
    let agents: Vec<_> = (0..8).map(|_| started.recv_timeout(Duration::from_secs(120)).expect("an agent")).collect();
    println!("8 agents at once in {:?}", start.elapsed());
    for agent in &agents {
        let region = agent.register(Memory::host(4096, HugePages::Off).unwrap()).wait().unwrap();
        assert!(!agent.local_metadata().wait().unwrap().is_empty());
        drop(region);
    }
    for agent in agents {
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
}
