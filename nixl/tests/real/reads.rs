//! Reads between two processes: every byte compared, the notification seen.

use bytes::Bytes;
use nixl::{AgentConfig, Closed, Fabric, HugePages, Memory};

use crate::peer::{DEADLINE, Peer, agent, pattern};

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
