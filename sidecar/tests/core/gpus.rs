//! Staging in GPU memory and in page-locked host memory, for engines with their caches on a GPU: on a GPU where there is one, else on the
//! driver that stands in for it, whose device memory the loopback network copies.

use std::time::Duration;

use cuda::{DeviceMemory, Gpu};
use cuda_host::driver::{Count, HostDriver};
use kv::digest::Verify;
use kv::layout::MemoryKind;
use kv::readiness::RankState;
use nixl::faulty::ReadFault;
use sidecar::gpus::GpuError;
use sidecar::model::{Faults, PodConfig, ShutDown, Spoil, StagingKind, StartError, TransferPhase};
use sidecar::pod::Pod;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::world::{BLOCK_BYTES, Setup, World};

/// The GPUs, for one test at a time: the tests count what is alive on them.
struct Rig {
    /// None on real GPUs.
    host: Option<&'static HostDriver>,
    gpus: Vec<Gpu>,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    async fn take() -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let host = HostDriver::unless_gpu();
        if let Some(host) = host {
            host.unguard(2).unwrap();
        }
        let gpus: Vec<Gpu> =
            (0..cuda::driver().unwrap().devices()).map(|ordinal| Gpu::open(ordinal).unwrap()).collect();
        // What the launches keep for their lists is there before anything is counted.
        for gpu in &gpus {
            DeviceMemory::new(gpu, 1).unwrap().zero(std::slice::from_ref(&(0..1))).unwrap();
        }
        Self { host, gpus, _alone: alone }
    }

    fn last(&self) -> Gpu {
        self.gpus.last().unwrap().clone()
    }

    fn count(&self, which: Count) -> Option<i64> {
        self.host.map(|host| host.count(which).unwrap())
    }

    /// Staging of a kind for engines on the last GPU.
    fn setup(&self, staging: StagingKind) -> Setup {
        Setup { staging, engines: Some(self.last()), ..Setup::default() }
    }
}

/// What the virtual engine says of the memory that D shall read.
async fn advertised(world: &World, params: &vllm_wire::params::KvTransferParams) -> (MemoryKind, u64) {
    let (_, metadata) = world.d[0].virtual_shard(&*world.net, params, 0).await;
    let layout = metadata.layout().unwrap();
    (layout.memory, layout.device)
}

#[tokio::test(start_paused = true)]
async fn kv_lands_on_the_gpu_is_compared_and_zeroed_there_and_served_from_there() {
    let rig = Rig::take().await;
    let mut digests = Vec::new();
    for (staging, tp) in
        [(StagingKind::Dram, 1), (StagingKind::Vram, 1), (StagingKind::Vram, 2), (StagingKind::Pinned, 1)]
    {
        let alive = [Count::Bytes, Count::Pinned].map(|which| rig.count(which));
        let launches = rig.count(Count::Launches);
        let setup = Setup { tp, verify: Verify::Full, zero_on_release: true, ..rig.setup(staging) };
        let world = World::ready(setup).await;
        let source = world.start_source().await;
        let start = world.sourced(world.p.prefill("cmpl-1", &[5, 6, 7, 40, 2]));
        let landed = world.pod.transfer(start).await.unwrap();
        let digest = landed.receipt.digest.unwrap();
        assert_eq!(digest.bytes, 5 * BLOCK_BYTES * u64::from(tp));
        digests.push(digest.value);
        let expected = match staging {
            StagingKind::Dram | StagingKind::Pinned => (MemoryKind::Dram, 0),
            StagingKind::Vram => (MemoryKind::Vram, u64::from(rig.last().ordinal())),
        };
        assert_eq!(advertised(&world, &landed.params).await, expected, "{staging:?}");
        assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "{staging:?}: the bytes are P's");

        let shown = world.pod.ranks().borrow()[0].staging;
        assert_eq!(shown.kind, Some(staging));
        assert_eq!(shown.device, (staging == StagingKind::Vram).then_some(expected.1));

        let compared = rig.count(Count::Launches);
        world.d[0].done(&*world.net, &landed.params).await;
        assert_eq!(world.figures().await, (0, 0));
        assert_eq!(world.shown(&landed).state, TransferPhase::Done);
        assert!(!world.d[0].read(&*world.net, &landed.params, "cmpl-1").await, "{staging:?}: what is free is zeroed");
        if staging == StagingKind::Vram {
            // Two kernels for D's digests and one for a piece of P's, in each shard; one for the zeroes.
            assert_eq!(compared, launches.map(|launches| launches + 3 * i64::from(tp)));
            assert_eq!(rig.count(Count::Launches), compared.map(|launches| launches + i64::from(tp)));
        } else {
            assert_eq!(rig.count(Count::Launches), launches, "{staging:?}: nothing is done on the GPU");
        }
        assert_eq!(source.shut_down(Duration::ZERO).await, ShutDown::Drained);
        assert_eq!(world.pod.shut_down(Duration::ZERO).await, ShutDown::Drained);
        drop((world, source));
        assert_eq!([Count::Bytes, Count::Pinned].map(|which| rig.count(which)), alive, "{staging:?}: all given back");
    }
    assert!(digests[0] == digests[1] && digests[0] == digests[3], "{digests:x?}");
}

#[tokio::test(start_paused = true)]
async fn spoilt_gpu_memory_gives_no_receipt() {
    let rig = Rig::take().await;
    for how in [Spoil::Flip, Spoil::Zero] {
        let faults = Faults { spoil: Some(how), ..Faults::default() };
        let world = World::ready(Setup { verify: Verify::Full, faults, ..rig.setup(StagingKind::Vram) }).await;
        let _source = world.start_source().await;
        let start = world.sourced(world.p.prefill("cmpl-1", &[1, 2, 3]));
        let error = world.pod.transfer(start).await.unwrap_err();
        assert_eq!(error.code().as_str(), "digest_mismatch", "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn staging_is_on_the_gpu_that_is_named_or_else_on_the_engine_s() {
    let rig = Rig::take().await;
    let last = rig.last().ordinal();
    for (gpus, expected) in [(vec![], [last, last]), (vec![0], [0, 0]), (vec![last, 0], [last, 0])] {
        let world = World::ready(Setup { gpus, dp: 2, ..rig.setup(StagingKind::Vram) }).await;
        for (rank, ordinal) in (0..).zip(expected) {
            let mut start = world.start(world.p.prefill(&format!("cmpl-{rank}"), &[1, 2]));
            start.dp_rank.0 += rank;
            let landed = world.pod.transfer(start).await.unwrap();
            assert_eq!(advertised(&world, &landed.params).await, (MemoryKind::Vram, u64::from(ordinal)));
            world.pod.finish(&landed.transfer).await.unwrap();
        }
    }
}

/// Tries to start a pod like the world's.
async fn started(world: &World, change: impl FnOnce(&mut PodConfig)) -> Result<Pod, StartError> {
    let mut config = world.config.clone();
    change(&mut config);
    Pod::start(config, world.parts.clone(), &world.tasks, CancellationToken::new()).await
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_gpus_have_no_room_or_are_not_there_does_not_start() {
    let rig = Rig::take().await;
    let world = World::ready(rig.setup(StagingKind::Vram)).await;
    let total = rig.gpus[0].memory().unwrap().total;
    let refused = started(&world, |config| {
        config.staging_bytes = total / 2 + 1;
        (config.dp_size, config.gpus) = (2, vec![0]);
    });
    let error = refused.await.unwrap_err();
    let StartError::Gpu(GpuError::TooLittle { ordinal: 0, shards: 2, needed, .. }) = &error else { panic!("{error}") };
    assert_eq!(*needed, 2 * (total / 2 + 1));
    assert!(error.to_string().contains("--staging-bytes") && error.to_string().contains("--gpu-memory-utilization"));
    // As much host memory is no GPU's business.
    let error = started(&world, |config| config.gpus = vec![4000]).await.unwrap_err();
    let StartError::Gpu(GpuError::Cuda { staging: "vram", source }) = &error else { panic!("{error}") };
    assert!(source.to_string().starts_with("there is no GPU 4000: this process sees"), "{source}");
    assert!(started(&world, |config| config.gpus = vec![0]).await.is_ok(), "the same with room");
}

#[tokio::test(start_paused = true)]
async fn a_gpu_that_is_full_when_its_rank_starts_is_a_reason_of_the_rank() {
    let rig = Rig::take().await;
    let Some(host) = rig.host else { return };
    // P's and D's caches, and then no more.
    host.refuse("cuMemAlloc_v2", 2, 2).unwrap();
    let world = World::new(rig.setup(StagingKind::Vram)).await;
    let ranks = world
        .rank_until("without staging", |rank| rank.reasons.iter().any(|reason| reason.contains("bytes free")))
        .await;
    assert_ne!(ranks[0].state, RankState::Ready);
    assert!(ranks[0].reasons.iter().any(|reason| reason.contains("--gpu-memory-utilization")), "{ranks:?}");
    host.refuse("cuMemAlloc_v2", 0, 0).unwrap();
    world.all_ready().await;
    world.land("cmpl-1", &[1, 2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_in_host_memory_gets_no_gpu_staging() {
    let rig = Rig::take().await;
    let world = World::new(Setup { engines: None, ..rig.setup(StagingKind::Vram) }).await;
    let refused = |reason: &String| reason.contains("this one's is in host memory: use --staging dram");
    world.rank_until("refused", |rank| rank.reasons.iter().any(refused)).await;
    // Page-locked memory is host memory.
    let world = World::ready(Setup { engines: None, ..rig.setup(StagingKind::Pinned) }).await;
    let landed = world.land("cmpl-1", &[1, 2, 3]).await;
    assert!(world.d[0].read(&*world.net, &landed.params, "cmpl-1").await);
}

#[tokio::test(start_paused = true)]
async fn gpu_memory_that_cannot_be_read_says_where_to_look() {
    let rig = Rig::take().await;
    for (staging, engines, hint) in [
        (StagingKind::Vram, Some(rig.last()), true),
        (StagingKind::Dram, Some(rig.last()), true),
        (StagingKind::Dram, None, false),
    ] {
        let world = World::ready(Setup { engines, ..rig.setup(staging) }).await;
        world.plan.reads(Some(ReadFault::RefusePost));
        let error = world.pod.transfer(world.start(world.p.prefill("cmpl-1", &[1]))).await.unwrap_err();
        assert_eq!(error.code().as_str(), "transfer_failed");
        assert_eq!(error.to_string().contains("kvgate doctor in both pods"), hint, "{error}");
    }
}
