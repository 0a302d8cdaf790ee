//! Reads between two processes: every byte compared, the notification seen.

use bytes::Bytes;
use nixl::{AgentConfig, AgentName, Closed, Cores, Fabric, FabricError, HugePages, Lanes, Memory, agent::PreparedRead};

use crate::peer::{DEADLINE, Peer, agent, pattern, wait_until};

const MIB: u64 = 1 << 20;

#[test]
fn reads_of_4_kib_to_64_mib_bring_the_peers_bytes_and_its_notification() {
    let Some(agent) = agent(AgentConfig::pull, "reader") else { return };
    let mut served = Peer::start("served", 64 * MIB);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(64 * MIB, HugePages::Try).unwrap()).wait().unwrap();
    for len in [4 << 10, 64 << 10, MIB, 64 * MIB] {
        region.fill(0..region.len(), 0xee).unwrap();
        let mut read = served.read(&peer, &region, &[(0, 0, len)]);
        let message = format!("done:{len}");
        read.notify = Some(Bytes::from(message.clone()));
        let reading = agent.read(read);
        reading.posted.wait().expect("posted");
        let done = reading.done.wait().expect("landed");
        assert_eq!((done.bytes, done.descs), (len, 1));
        println!("READ {len} bytes: post {:?}, wire {:?}", done.post, done.wire);
        let mut landed = vec![0; usize::try_from(region.len()).unwrap()];
        region.read_at(0, &mut landed).unwrap();
        let len = usize::try_from(len).unwrap();
        assert!(landed[..len].iter().zip(0..).all(|(byte, at)| *byte == pattern(at)), "the peer's bytes");
        assert!(landed[len..].iter().all(|byte| *byte == 0xee), "nothing beyond them");
        assert_eq!(served.notification(), (agent.name().to_string(), message.into_bytes()));
    }
    drop(region);
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

#[test]
fn scattered_reads_land_where_they_should_listed_and_prepared() {
    let Some(agent) = agent(AgentConfig::pull, "scattered") else { return };
    let mut served = Peer::start("scattered-served", 4 * MIB);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(4 * MIB, HugePages::Off).unwrap()).wait().unwrap();
    // Blocks of 4 KiB, every third one, in reverse order here.
    let block = 4096;
    let parts: Vec<_> = (0..200).map(|at| (at * 3 * block, (400 - 2 * at) * block, block)).collect();
    let check = || {
        let mut landed = vec![0; 4 << 20];
        region.read_at(0, &mut landed).unwrap();
        let mut expected = vec![0xee; 4 << 20];
        for &(from, to, len) in &parts {
            for at in 0..len {
                expected[usize::try_from(to + at).unwrap()] = pattern(from + at);
            }
        }
        assert!(landed == expected, "each block in its place and nothing else");
        region.fill(0..region.len(), 0xee).unwrap();
    };
    region.fill(0..region.len(), 0xee).unwrap();
    let read = served.read(&peer, &region, &parts);
    let done = agent.read(read.clone()).done.wait().unwrap();
    assert_eq!((done.bytes, done.descs), (200 * 4096, 200));
    check();

    let local = agent.prepare_local(read.local).wait().unwrap();
    let remote = agent.prepare_remote(peer.clone(), read.remote).wait().unwrap();
    for round in 0..3 {
        let read = PreparedRead {
            local: local.clone(),
            remote: remote.clone(),
            pairs: (0..200).map(|at| (at, at)).collect(),
            notify: Some(Bytes::from(format!("prepared {round}"))),
        };
        assert_eq!(agent.read_prepared(read).done.wait().unwrap().bytes, 200 * 4096);
        check();
        assert_eq!(served.notification().1, format!("prepared {round}").into_bytes());
    }
    agent.forget_peer(peer.clone()).wait().unwrap();
    let read = PreparedRead { local, remote, pairs: vec![(0, 0)], notify: None };
    assert_eq!(agent.read_prepared(read).done.wait(), Err(FabricError::UnknownPeer(peer)));
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

#[test]
fn notifications_are_bytes_and_leave_although_nobody_polls() {
    let Some(agent) = agent(AgentConfig::pull, "notifier") else { return };
    let mut served = Peer::start("notified", 4096);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    // The first one also has to wait for the connection.
    for message in [b"\0not\xffutf-8".as_slice(), b"", &[7; 3000]] {
        agent.notify(peer.clone(), Bytes::copy_from_slice(message)).wait().unwrap();
        assert_eq!(served.notification(), (agent.name().to_string(), message.to_vec()));
    }
    let unknown = AgentName::new("nobody").unwrap();
    let refused = agent.notify(unknown.clone(), Bytes::new()).wait();
    assert_eq!(refused, Err(FabricError::UnknownPeer(unknown)));
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

#[test]
fn junk_metadata_and_unadvertised_memory_are_errors_that_leave_memory_quiet() {
    let Some(agent) = agent(AgentConfig::pull, "careful") else { return };
    for junk in [b"".as_slice(), b"junk", &[0xff; 600]] {
        let refused = agent.load_peer(Bytes::copy_from_slice(junk)).wait().unwrap_err();
        assert!(refused.memory_is_quiet(), "{refused}");
    }
    let served = Peer::start("careful-served", 8192);
    let peer = agent.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = agent.register(Memory::host(1 << 20, HugePages::Off).unwrap()).wait().unwrap();
    // The peer lies about what it serves: NIXL knows better.
    let mut liar = served.read(&peer, &region, &[(0, 0, 4096)]);
    let mut memory = served.memory();
    memory.ranges = std::iter::once(0..u64::MAX).collect();
    liar.remote = nixl::RemoteDescs::new(&memory, [(served.base + (64 << 20), 4096)]).unwrap();
    let refused = agent.read(liar).done.wait().unwrap_err();
    assert!(matches!(refused, FabricError::Nixl(_)) && refused.memory_is_quiet(), "{refused:?}");
    assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
}

#[test]
fn a_large_read_is_cut_where_a_thread_copies_and_brings_the_peers_bytes() {
    let Some(api) = nixl_sys::testing::require_nixl() else { return };
    let name = AgentName::new(format!("lanes-{}", std::process::id())).unwrap();
    // Cores that there may not be: the parts then take turns.
    let lanes = Lanes::start(api, AgentConfig::pull(name), Cores::new(2)).unwrap();
    let served = Peer::start("lanes-served", 64 * MIB);
    let peer = lanes.load_peer(Bytes::from(served.metadata.clone())).wait().unwrap();
    let region = lanes.register(Memory::host(64 * MIB, HugePages::Try).unwrap()).wait().unwrap();
    // In descending blocks, so that pieces cannot be mixed up unseen; some are cut, and so count twice.
    let block = 2 * MIB;
    let parts: Vec<_> = (0..31).map(|at| (at * block, (30 - at) * block, block - 4096)).collect();
    let read = || lanes.read(served.read(&peer, &region, &parts)).done.wait().unwrap();
    let first = read();
    let copied = first.post.saturating_mul(4) >= first.wire.saturating_mul(3);
    if copied {
        wait_until("a read is cut", || read().descs > parts.len());
    }
    println!(
        "one part: post {:?}, wire {:?}; now {:?} by {} agents",
        first.post,
        first.wire,
        read().wire,
        lanes.agents()
    );
    assert_eq!(lanes.agents(), if copied { 2 } else { 1 }, "two where a thread copies, and only there");
    region.fill(0..region.len(), 0xee).unwrap();
    read();
    let mut landed = vec![0; 64 << 20];
    region.read_at(0, &mut landed).unwrap();
    let mut expected = vec![0xee; 64 << 20];
    for (from, to, len) in parts {
        for at in 0..len {
            expected[usize::try_from(to + at).unwrap()] = pattern(from + at);
        }
    }
    assert!(landed == expected, "every byte in its place, and nothing else");
    drop(region);
    assert_eq!(lanes.close(DEADLINE).wait(), Ok(Closed::Quiet));
}
