//! Many threads on one agent, and many agents that do nothing.

use std::{
    fs,
    time::{Duration, Instant},
};

use bytes::Bytes;
use nixl::{AgentConfig, Closed, Fabric, HugePages, Memory};

use crate::peer::{DEADLINE, Peer, agent, in_child, nixl_is_there, pattern, wait_until};

#[test]
fn four_threads_share_an_agent_and_each_gets_its_own_bytes() {
    let Some(agent) = agent(AgentConfig::pull, "shared") else { return };
    let served = Peer::start("shared-served", 1 << 20);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (agent, served, peer) = (&agent, &served, &peer);
            scope.spawn(move || {
                for round in 0..250 {
                    let region = agent.register(Memory::host(8192, HugePages::Off).unwrap()).wait().unwrap();
                    let from = thread * 200_000 + round * 512;
                    agent.read(served.read(peer, &region, &[(from, 100, 4096)])).done.wait().unwrap();
                    agent.local_metadata().wait().unwrap();
                    let mut landed = [0; 4096];
                    region.read_at(100, &mut landed).unwrap();
                    assert!(landed.iter().zip(from..).all(|(byte, at)| *byte == pattern(at)));
                }
            });
        }
    });
    println!("1000 registrations and reads from 4 threads in {:?}", start.elapsed());
    // The agent counts at the end of a lap, after it has answered.
    wait_until("all are counted", || agent.stats().in_flight == 0);
    let stats = agent.stats();
    assert_eq!((stats.buried, stats.failed_cleanups), (0, 0));
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

/// CPU time of this process so far, from the kernel's counts of 10 ms.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// A sidecar of 8 DP ranks has 8 agents that pull and 8 that serve.
#[test]
fn sixteen_idle_agents_cost_less_than_5_percent_of_a_core() {
    if !nixl_is_there() {
        return;
    }
    // In a process of its own, so that other tests of this binary are not counted.
    if in_child("load::sixteen_idle_agents_cost_less_than_5_percent_of_a_core", &[]).is_some() {
        return;
    }
    let mut agents = Vec::new();
    for rank in 0..8 {
        for config in [AgentConfig::pull, AgentConfig::serve] {
            let agent = agent(config, &format!("idle-{rank}-{}", agents.len())).unwrap();
            let region = agent.register(Memory::host(1 << 20, HugePages::Off).unwrap()).wait().unwrap();
            agents.push((agent, region));
        }
    }
    let before = cpu();
    let window = Duration::from_secs(4);
    std::thread::sleep(window);
    let used = (cpu() - before).as_secs_f64() / window.as_secs_f64();
    println!("16 idle agents: {:.1} % of a core", used * 100.0);
    assert!(used < 0.05, "{used}");
    for (agent, region) in agents {
        drop(region);
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
}
