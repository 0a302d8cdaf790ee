//! Tests of the scheduler: order, limits, pins, and that blocks always come back.

use std::time::Duration;

use super::*;
use crate::geometry::Geometry;

struct Rig {
    commands: mpsc::Sender<Command>,
    stats: Arc<RankStats>,
    _stop: tokio_util::sync::DropGuard,
}

/// Five blocks to hand out, a lease of 30 s.
fn rig(max_running: usize, max_waiting: usize) -> Rig {
    let geometry = Geometry {
        layers: 1,
        kv_heads: 1,
        head_size: 1,
        dtype_bytes: 1,
        block_tokens: 1,
        num_blocks: 6,
        tensor_parallel: 1,
    };
    let stats = Arc::new(RankStats::default());
    let scheduler = Scheduler::new(
        BlockPool::new(6, true),
        Pins::new(Duration::from_secs(30), 1),
        Limits { max_running, max_waiting },
        Arc::clone(&stats),
        Arc::new(Arena::new(geometry, Vec::new())),
    );
    let (commands, inbox) = mpsc::channel(16);
    let (stop, tasks) = (CancellationToken::new(), tokio_util::task::TaskTracker::new());
    tasks.spawn(scheduler.run(inbox, stop.clone()));
    Rig { commands, stats, _stop: stop.drop_guard() }
}

impl Rig {
    async fn ask(&self, total: usize) -> oneshot::Receiver<Admitted> {
        let (reply, turn) = oneshot::channel();
        self.commands.send(Command::Admit(Admit { keys: Vec::new(), total, reply })).await.unwrap();
        turn
    }

    async fn hear(&self, message: &'static [u8]) {
        let message = Bytes::from_static(message);
        self.commands.send(Command::Notified { shard: TpRank(0), message }).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn requests_get_blocks_in_the_order_in_which_they_came() {
    let rig = rig(8, 8);
    let first = rig.ask(3).await.await.unwrap();
    let mut big = rig.ask(4).await;
    let mut small = rig.ask(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(big.try_recv().is_err() && small.try_recv().is_err(), "the small one does not overtake");
    drop(first);
    let (big, small) = (big.await.unwrap(), small.await.unwrap());
    assert_eq!((big.allocation.blocks.len(), small.allocation.blocks.len()), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn one_that_gives_up_waiting_holds_up_nobody() {
    let rig = rig(1, 8);
    let first = rig.ask(1).await.await.unwrap();
    let gone = rig.ask(5).await;
    let next = rig.ask(1).await;
    drop((gone, first));
    assert_eq!(next.await.unwrap().allocation.blocks.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_are_refused() {
    let rig = rig(1, 1);
    let _first = rig.ask(1).await.await.unwrap();
    let _waits = rig.ask(1).await;
    assert!(rig.ask(1).await.await.is_err());
}

#[tokio::test(start_paused = true)]
async fn pinned_blocks_come_back_when_they_were_read_or_their_lease_is_over() {
    let rig = rig(8, 8);
    let (read, left) = (rig.ask(2).await.await.unwrap(), rig.ask(2).await.await.unwrap());
    read.holding.pin(EngineRequestId::new("read")).await;
    left.holding.pin(EngineRequestId::new("left")).await;
    let all = rig.ask(5).await;
    rig.hear(b"read:1").await;
    rig.hear(b"nobody:1").await;
    rig.hear(b"\xff").await;
    assert_eq!(all.await.unwrap().allocation.blocks.len(), 5, "the clock runs on until the lease is over");
    assert_eq!((rig.stats.expired.get(), rig.stats.unknown_notifications.get()), (1, 2));
    rig.hear(b"left:1").await;
    let _after: Admitted = rig.ask(1).await.await.unwrap();
    assert_eq!(rig.stats.late_notifications.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn quarantined_blocks_never_come_back() {
    let rig = rig(8, 8);
    rig.ask(2).await.await.unwrap().holding.quarantine();
    let rest = rig.ask(3).await.await.unwrap();
    drop(rest);
    let mut too_many = rig.ask(4).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(too_many.try_recv().is_err());
    assert_eq!(rig.stats.quarantined_blocks.get(), 2);
}
