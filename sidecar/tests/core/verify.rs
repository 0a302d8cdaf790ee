//! What has landed is compared with what P holds: receipts that say so, and everything that must not end in one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use kv::digest::Verify;
use kv::ids::{BlockId, EngineId, EngineRequestId};
use nixl::faulty::ReadFault;
use sidecar::digest::{DigestAsk, MOST_DIGESTS};
use sidecar::model::{Faults, Spoil, StartTransfer, TransferError, TransferPhase};
use tokio::time::Instant;
use vllm_wire::params::KvTransferParams;

use crate::world::{BLOCK_BYTES, POOL, REGIONS, SLOTS, Setup, World};

impl World {
    /// Asks for a transfer that says where P's sidecar is.
    pub(crate) fn sourced(&self, params: KvTransferParams) -> StartTransfer {
        StartTransfer { source_sidecar: Some("http://source:7700".parse().unwrap()), ..self.start(params) }
    }

    async fn fails(&self, request: &str, blocks: &[u32]) -> TransferError {
        self.pod.transfer(self.sourced(self.p.prefill(request, blocks))).await.unwrap_err()
    }
}

async fn verifying(setup: Setup) -> World {
    let world = World::ready(setup).await;
    world.start_source().await;
    world
}

fn full() -> Setup {
    Setup { verify: Verify::Full, ..Setup::default() }
}

fn ask(world: &World, blocks: &[u32]) -> DigestAsk {
    DigestAsk {
        engine: world.p.id.clone(),
        request: EngineRequestId::new("cmpl-1"),
        blocks: vec![blocks.iter().copied().map(BlockId).collect()],
        deadline: Instant::now() + Duration::from_secs(5),
        trace: None,
    }
}

#[tokio::test(start_paused = true)]
async fn equal_bytes_give_a_receipt_with_their_digest() {
    for tp in [1, 2] {
        let mut world = verifying(Setup { tp, ..full() }).await;
        let start = world.sourced(world.p.prefill("cmpl-1", &[5, 6, 7, 40, 2]));
        let landed = world.pod.transfer(start).await.unwrap();
        let digest = landed.receipt.digest.unwrap();
        assert_eq!((digest.verify, digest.blocks, digest.bytes), (Verify::Full, 5, 5 * BLOCK_BYTES * u64::from(tp)));
        assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "the bytes are P's");
        let shown = world.shown(&landed);
        let facts = shown.read.digests.unwrap();
        assert_eq!((facts.blocks, facts.bytes), (5, digest.bytes));
        assert!(facts.source.is_some() && facts.compared.is_some(), "{facts:?}");
        assert!(shown.stages.verify.is_some() && landed.receipt.stages.verify.is_some());
        assert_eq!(world.receipts.given.lock()[0].receipt.digest, Some(digest), "the digest is on record");
        world.settle().await;
        assert_eq!(world.p.dones("cmpl-1"), vec![1; usize::from(tp)]);
        assert_eq!(world.count(|counters| &counters.compared_bytes), digest.bytes);

        // Elsewhere in both caches the same bytes have the same digest.
        world.d[0].done(&*world.net, &landed.params).await;
        world.land_elsewhere(tp).await;
        let start = world.sourced(world.p.prefill("cmpl-1", &[50, 9, 1, 2, 3]));
        let start = StartTransfer { params: renamed(start.params.clone(), "cmpl-2"), ..start };
        let again = world.pod.transfer(start).await.unwrap();
        assert_eq!(again.receipt.digest.unwrap().value, digest.value);
    }
}

impl World {
    /// Takes some slots, so that the next ones are others.
    async fn land_elsewhere(&self, _tp: u16) {
        self.settle().await;
        let start = self.sourced(self.p.prefill("cmpl-between", &[20, 21]));
        self.pod.transfer(start).await.unwrap();
    }
}

fn renamed(params: KvTransferParams, request: &str) -> KvTransferParams {
    KvTransferParams { remote_request_id: EngineRequestId::new(request), ..params }
}

#[tokio::test(start_paused = true)]
async fn a_request_may_ask_for_more_than_the_flag_and_not_for_less() {
    for (flag, asked, counts) in [
        (Verify::Off, Verify::Off, None),
        (Verify::Off, Verify::Sample(3), Some((Verify::Sample(3), 3))),
        (Verify::Sample(3), Verify::Off, Some((Verify::Sample(3), 3))),
        (Verify::Sample(3), Verify::Full, Some((Verify::Full, 6))),
        (Verify::Full, Verify::Sample(2), Some((Verify::Full, 6))),
    ] {
        let world = verifying(Setup { verify: flag, ..Setup::default() }).await;
        let start = world.sourced(world.p.prefill("cmpl-1", &[5, 6, 7, 40, 2, 3]));
        let landed = world.pod.transfer(StartTransfer { verify: asked, ..start }).await.unwrap();
        let digest = landed.receipt.digest.map(|digest| (digest.verify, digest.blocks));
        assert_eq!(digest, counts, "{flag:?} {asked:?}");
        assert_eq!(world.sources.asked.load(Ordering::Relaxed), u64::from(counts.is_some()));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_change_after_they_have_landed_give_no_receipt() {
    for (verify, how) in [(Verify::Full, Spoil::Flip), (Verify::Sample(2), Spoil::Flip), (Verify::Full, Spoil::Zero)] {
        let faults = Faults { spoil: Some(how), ..Faults::default() };
        let mut world = verifying(Setup { verify, faults, ..Setup::default() }).await;
        let error = world.fails("cmpl-1", &[1, 2, 3]).await;
        assert_eq!((error.code().as_str(), error.code().retry().as_str()), ("digest_mismatch", "new_prefill"));
        let differ = if verify == Verify::Full { 3 * REGIONS } else { 2 * REGIONS };
        assert!(error.to_string().contains(&format!("{differ} of {differ} digests")), "{error}");
        assert!(world.receipts.given.lock().is_empty(), "no receipt is on record");
        assert_eq!(world.figures().await, (0, 0), "M: no read failed, so the slots are free");
        assert_eq!(world.p.dones("cmpl-1"), [0], "N: its prefill may be tried again");
        assert_eq!(world.ended(), [("digest_mismatch", 1)].into());
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_change_on_the_way_give_no_receipt() {
    let world = verifying(full()).await;
    world.plan.reads(Some(ReadFault::Corrupt));
    assert_eq!(world.fails("cmpl-1", &[1, 2, 9]).await.code().as_str(), "digest_mismatch");
    world.plan.reads(None);
    let start = world.sourced(world.p.prefill("cmpl-1", &[1, 2, 9]));
    assert!(world.pod.transfer(start).await.is_ok(), "the same prefill can be read again");
}

#[tokio::test(start_paused = true)]
async fn blocks_that_p_overwrites_between_digest_and_read_give_no_receipt() {
    let faults = Faults { hold_pull: Some(Duration::from_secs(2)), ..Faults::default() };
    let world = verifying(Setup { faults, ..full() }).await;
    let params = world.p.prefill("cmpl-1", &[1, 2, 9]);
    let overwrite = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.p.prefill("cmpl-2", &[9]);
    };
    let (outcome, ()) = tokio::join!(world.pod.transfer(world.sourced(params)), overwrite);
    let error = outcome.unwrap_err();
    assert_eq!(error.code().as_str(), "digest_mismatch");
    assert!(error.to_string().contains(&format!("{REGIONS} of {} digests", 3 * REGIONS)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_cannot_ask_the_source_gives_no_receipt() {
    let mut world = World::ready(full()).await;
    let nobody = world.start(world.p.prefill("cmpl-1", &[1]));
    assert_eq!(world.pod.transfer(nobody).await.unwrap_err().code().as_str(), "params_invalid");
    let error = world.fails("cmpl-1", &[1, 2]).await;
    assert_eq!((error.code().as_str(), error.code().retry().as_str()), ("peer_unreachable", "new_prefill"));
    assert!(error.to_string().contains("http://source:7700"), "{error}");
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.p.dones("cmpl-1"), [0]);

    let source = world.start_source().await;
    *world.sources.stingy.lock() = true;
    assert_eq!(world.fails("cmpl-1", &[1, 2]).await.code().as_str(), "peer_unreachable", "a digest is missing");
    *world.sources.stingy.lock() = false;
    source.shut_down(Duration::ZERO).await;
    assert_eq!(world.fails("cmpl-1", &[1, 2]).await.code().as_str(), "peer_unreachable");
    assert_eq!(world.figures().await, (0, 0));
    assert!(world.receipts.given.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_answers_late_is_waited_for_under_the_lease() {
    let world = verifying(full()).await;
    *world.sources.delay.lock() = Duration::from_secs(40);
    let transfer = world.pod.begin(world.sourced(world.p.prefill("cmpl-1", &[1, 2]))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let shown = world.pod.get(&transfer).unwrap();
    assert_eq!(shown.state, TransferPhase::Verifying);
    let spans = shown.timeline(Instant::now());
    let last = spans.last().unwrap();
    assert_eq!((last.stage, last.running), ("verify", true), "{spans:?}");
    let shown = world.pod.wait(&transfer, Duration::from_secs(30)).await.unwrap();
    assert_eq!(shown.state, TransferPhase::Landed, "heartbeats have kept a lease of 30 s for 40 s: {shown:#?}");
    assert!(shown.stages.verify.unwrap() > Duration::from_secs(35), "{:?}", shown.stages);

    let faults = Faults { no_heartbeat: true, ..Faults::default() };
    let mut world = verifying(Setup { faults, ..full() }).await;
    *world.sources.delay.lock() = Duration::from_secs(29);
    assert_eq!(world.fails("cmpl-1", &[1, 2]).await.code().as_str(), "lease_expired", "L: taken too late to count");
    assert_eq!(world.figures().await, (0, 0));
    assert_eq!(world.p.dones("cmpl-1"), [0]);

    let world = verifying(full()).await;
    *world.sources.delay.lock() = Duration::from_secs(29);
    let mut start = world.sourced(world.p.prefill("cmpl-1", &[1]));
    start.deadline = Instant::now() + Duration::from_secs(3);
    let begun = Instant::now();
    let code = world.pod.transfer(start).await.unwrap_err().code().as_str();
    assert!(["deadline", "peer_unreachable"].contains(&code), "{code}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_read_of_the_source_s_sidecar_that_fails_is_the_peer_s_fault_and_its_next_one_works() {
    let world = verifying(full()).await;
    for fault in [ReadFault::FailEmpty, ReadFault::RefusePost, ReadFault::Hang] {
        world.sources.plan.reads(Some(fault));
        let error = world.fails("cmpl-1", &[1, 2]).await;
        assert_eq!(error.code().as_str(), "peer_unreachable", "{fault:?}");
        world.sources.plan.reads(None);
        let start = world.sourced(world.p.prefill("cmpl-1", &[1, 2]));
        let landed =
            world.pod.transfer(StartTransfer { params: renamed(start.params.clone(), &format!("{fault:?}")), ..start });
        assert!(landed.await.is_ok(), "after {fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_digested_is_refused_by_name() {
    let world = World::ready(Setup::default()).await;
    let source = world.start_source().await;
    world.p.prefill("cmpl-1", &[1, 2]);
    let taken = source.digests(ask(&world, &[1, 2, 1])).await.unwrap();
    assert_eq!(taken.bytes, 3 * BLOCK_BYTES);
    assert_eq!(taken.shards[0].len(), 9);
    assert_eq!(taken.shards[0][..3], taken.shards[0][6..], "the same block, the same digests");
    assert_eq!(source.counters().served_digest_bytes.load(Ordering::Relaxed), taken.bytes);

    let refused = async |change: &dyn Fn(&mut DigestAsk)| {
        let mut ask = ask(&world, &[1]);
        change(&mut ask);
        source.digests(ask).await.unwrap_err().code().as_str()
    };
    assert_eq!(refused(&|ask| ask.engine = EngineId::new("another")).await, "peer_changed");
    assert_eq!(refused(&|ask| ask.blocks = vec![vec![BlockId(POOL)]]).await, "params_invalid");
    assert_eq!(refused(&|ask| ask.blocks = vec![vec![], vec![]]).await, "params_invalid");
    assert_eq!(refused(&|ask| ask.blocks = vec![vec![]]).await, "params_invalid");
    assert_eq!(refused(&|ask| ask.blocks = vec![vec![BlockId(1); MOST_DIGESTS]]).await, "too_large");
    assert_eq!(refused(&|ask| ask.deadline = Instant::now()).await, "deadline");
    assert_eq!(world.pod.digests(ask(&world, &[1])).await.unwrap_err().code().as_str(), "params_invalid", "wrong role");
    source.shut_down(Duration::ZERO).await;
    assert_eq!(refused(&|_| {}).await, "shutting_down");
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_digested_one_after_another() {
    let world = verifying(Setup { verify: Verify::Sample(2), ..Setup::default() }).await;
    let starts: Vec<_> =
        (0..SLOTS / 2).map(|n| world.sourced(world.p.prefill(&format!("cmpl-{n}"), &[n * 2, n * 2 + 1]))).collect();
    let transfers = starts.into_iter().map(|start| world.pod.transfer(start));
    for landed in futures_util::future::join_all(transfers).await {
        assert_eq!(landed.unwrap().receipt.digest.unwrap().blocks, 2);
    }
}
