//! The loopback fabric and the faulty one around it, on paused time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use nixl::{
    AgentName, Closed, DescError, Fabric, FabricError, HugePages, LocalDescs, MemKind, Memory, PeerMemory, Read,
    Region, RemoteDescs,
    faulty::{FaultPlan, Faulty, NotifyFault, ReadFault},
    loopback::{LoopbackFabric, LoopbackNet},
};
use tokio::time::Instant;

const BLOCK: u64 = 4096;

struct Pair {
    source: Arc<LoopbackFabric>,
    there: Region,
    plan: FaultPlan,
    reader: Arc<Faulty>,
    here: Region,
}

/// A source of `1`s, and a reader that has loaded it.
async fn pair() -> Pair {
    let net = LoopbackNet::new();
    let source = net.agent(AgentName::new("p").unwrap());
    let there = source.register(Memory::host(4 * BLOCK, HugePages::Off).unwrap()).await.unwrap();
    there.fill(0..there.len(), 1).unwrap();
    let plan = FaultPlan::new();
    let reader = Faulty::wrap(net.agent(AgentName::new("d").unwrap()), plan.clone());
    reader.load_peer(source.local_metadata().await.unwrap()).await.unwrap();
    let here = reader.register(Memory::host(4 * BLOCK, HugePages::Off).unwrap()).await.unwrap();
    Pair { source, there, plan, reader, here }
}

impl Pair {
    /// Reads blocks 0 and 1 into blocks 2 and 3.
    fn read(&self) -> Read {
        let base = self.there.base();
        let ranges = std::iter::once(base..base + self.there.len()).collect();
        let peer = PeerMemory { kind: MemKind::Dram, device: 0, ranges };
        Read {
            peer: self.source.name().clone(),
            local: LocalDescs::new(&self.here, [(2 * BLOCK, BLOCK), (3 * BLOCK, BLOCK)]).unwrap(),
            remote: RemoteDescs::new(&peer, [(base, BLOCK), (base + BLOCK, BLOCK)]).unwrap(),
            notify: Some(Bytes::from_static(b"read")),
        }
    }

    /// The last byte of each block here.
    fn landed(&self) -> [u8; 4] {
        [1, 2, 3, 4].map(|block| {
            let mut last = [0];
            self.here.read_at(block * BLOCK - 1, &mut last).unwrap();
            last[0]
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_loopback_read_brings_the_bytes_and_its_notification() {
    let pair = pair().await;
    let mut notifications = pair.source.take_notifications().unwrap();
    assert!(pair.source.take_notifications().is_none());
    let reading = pair.reader.read(pair.read());
    reading.posted.await.unwrap();
    let done = reading.done.await.unwrap();
    assert_eq!((done.bytes, done.descs), (2 * BLOCK, 2));
    assert_eq!(pair.landed(), [0, 0, 1, 1]);
    let notification = notifications.recv().await.unwrap();
    assert_eq!((notification.from, &*notification.message), (pair.reader.name().clone(), b"read".as_slice()));
    assert_eq!(pair.reader.close(Duration::ZERO).await, Ok(Closed::Quiet));
    assert_eq!(pair.reader.read(pair.read()).done.await, Err(FabricError::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_read_from_a_peer_that_is_unknown_unregistered_or_gone_is_an_error() {
    let pair = pair().await;
    let mut read = pair.read();
    read.peer = AgentName::new("x").unwrap();
    assert_eq!(pair.reader.read(read.clone()).done.await, Err(FabricError::UnknownPeer(read.peer)));

    let foreign = pair.source.register(Memory::host(4 * BLOCK, HugePages::Off).unwrap()).await.unwrap();
    let mut read = pair.read();
    read.local = LocalDescs::new(&foreign, [(0, BLOCK), (0, BLOCK)]).unwrap();
    assert_eq!(pair.reader.read(read).done.await, Err(FabricError::Descs(DescError::ForeignRegion)));
    let mut read = pair.read();
    read.local = LocalDescs::new(&pair.here, [(0, 2 * BLOCK)]).unwrap();
    let count = DescError::Count { local: 1, remote: 2 };
    assert_eq!(pair.reader.read(read).done.await, Err(FabricError::Descs(count)));

    let read = pair.read();
    assert_eq!(pair.source.close(Duration::ZERO).await, Ok(Closed::Quiet));
    let gone = pair.reader.read(read).done.await.unwrap_err();
    assert!(!gone.memory_is_quiet(), "{gone}");
    assert_eq!(pair.landed(), [0; 4]);
}

#[tokio::test(start_paused = true)]
async fn reads_go_wrong_as_planned_and_then_well_again() {
    let pair = pair().await;
    pair.plan.next_read(Some(ReadFault::Delay(Duration::from_secs(3))));
    pair.plan.next_read(Some(ReadFault::Corrupt));
    pair.plan.next_read(None);
    pair.plan.next_read(Some(ReadFault::RefusePost));
    let start = Instant::now();
    pair.reader.read(pair.read()).done.await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 3);
    pair.reader.read(pair.read()).done.await.unwrap();
    assert_eq!(pair.landed(), [0, 0, 254, 254]);
    pair.reader.read(pair.read()).done.await.unwrap();
    assert_eq!(pair.landed(), [0, 0, 1, 1]);
    let refused = pair.reader.read(pair.read());
    assert!(refused.posted.await.is_err());
    assert!(!refused.done.await.unwrap_err().memory_is_quiet());
    pair.reader.read(pair.read()).done.await.unwrap();
    assert_eq!(pair.plan.injected(), 3);
    assert_eq!(pair.reader.stats().buried, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_may_land_in_part_or_late_but_never_after_the_close() {
    let pair = pair().await;
    pair.plan.next_read(Some(ReadFault::FailHalf));
    assert!(pair.reader.read(pair.read()).done.await.is_err());
    assert_eq!(pair.landed(), [0, 0, 1, 0]);

    pair.here.fill(0..pair.here.len(), 0).unwrap();
    pair.plan.reads(Some(ReadFault::FailThenLand(Duration::from_secs(1))));
    assert!(pair.reader.read(pair.read()).done.await.is_err());
    assert_eq!(pair.landed(), [0; 4]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pair.landed(), [0, 0, 1, 1]);

    pair.here.fill(0..pair.here.len(), 0).unwrap();
    assert!(pair.reader.read(pair.read()).done.await.is_err());
    pair.plan.reads(Some(ReadFault::Hang));
    let hung = pair.reader.read(pair.read());
    assert_eq!(pair.reader.stats().in_flight, 1);
    assert_eq!(pair.reader.close(Duration::ZERO).await, Ok(Closed::Destroyed));
    assert_eq!(hung.done.await, Err(FabricError::Abandoned));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(pair.landed(), [0; 4]);
}

#[tokio::test(start_paused = true)]
async fn notifications_get_lost_doubled_and_refused_as_planned() {
    let pair = pair().await;
    let mut notifications = pair.source.take_notifications().unwrap();
    let send = |text: &'static str| pair.reader.notify(pair.source.name().clone(), Bytes::from_static(text.as_bytes()));
    pair.plan.next_notification(Some(NotifyFault::Drop));
    pair.plan.next_notification(Some(NotifyFault::Double));
    pair.plan.next_notification(Some(NotifyFault::Refuse));
    assert_eq!(send("lost").await, Ok(()));
    assert_eq!(send("twice").await, Ok(()));
    assert!(send("refused").await.is_err());
    assert_eq!(send("once").await, Ok(()));
    for expected in ["twice", "twice", "once"] {
        assert_eq!(notifications.recv().await.unwrap().message, expected.as_bytes());
    }
}
