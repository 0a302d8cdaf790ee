//! The prefill role.

use std::sync::Arc;
use std::time::Duration;

use kv::ids::{DpRank, EngineRequestId};
use nixl::faulty::NotifyFault;
use parking_lot::Mutex;
use sidecar::model::{HandleState, LetGo, ReportHandle, Role};

use crate::world::{OFFSET, Setup, World};

fn report(world: &World, request: &str) -> ReportHandle {
    ReportHandle {
        dp_rank: DpRank(OFFSET),
        params: world.d[0].prefill(request, &[1, 2]),
        lease: None,
        age: Duration::ZERO,
    }
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_prefill_is_told_once_per_shard() {
    let mut world = World::ready(Setup { role: Role::Prefill, tp: 2, ..Setup::default() }).await;
    let shown = world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    assert_eq!((shown.state, shown.blocks), (HandleState::Pinned, 2));
    world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    world.settle().await;
    assert_eq!(world.pod.handles().await[0].handles.len(), 1, "reporting is idempotent");
    let request = EngineRequestId::new("cmpl-1");
    world.pod.release_handle(DpRank(OFFSET), &request, LetGo::Abandoned).await.unwrap();
    world.pod.release_handle(DpRank(OFFSET), &request, LetGo::Abandoned).await.unwrap();
    world.settle().await;
    assert_eq!(world.d[0].dones("cmpl-1"), [1, 1]);
    assert_eq!(world.pod.handles().await[0].handles[0].state, HandleState::Released);
    world.pod.release_handle(DpRank(OFFSET), &EngineRequestId::new("unknown"), LetGo::Abandoned).await.unwrap();
    world.settle().await;
    assert_eq!(world.d[0].dones("unknown"), [1, 1], "the engine ignores what it does not know");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_could_not_be_told_of_an_abandoned_prefill_is_told_again() {
    let mut world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    for _ in 0..3 {
        world.plan.next_notification(Some(NotifyFault::Refuse));
    }
    let begun = tokio::time::Instant::now();
    world.pod.release_handle(DpRank(OFFSET), &EngineRequestId::new("cmpl-1"), LetGo::Abandoned).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(50), "whoever gives it up does not wait for that");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.d[0].dones("cmpl-1"), [1]);
    assert_eq!(world.count(|counters| &counters.tells_failed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_prefill_that_was_read_is_forgotten_and_not_told_again() {
    let mut world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    let request = EngineRequestId::new("cmpl-1");
    world.pod.release_handle(DpRank(OFFSET), &request, LetGo::Read).await.unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(world.pod.handles().await[0].handles.is_empty());
    assert_eq!(world.d[0].dones("cmpl-1"), [0], "whoever read it has told the engine");
    assert_eq!(world.pod.counters().leaked_handles.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn handles_expire_with_their_lease_and_are_forgotten() {
    let world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let pinned = &world.pod.handles().await[0];
    assert_eq!((pinned.dp_rank, pinned.handles[0].block_ids.as_deref()), (DpRank(OFFSET), Some(&[vec![1, 2]][..])));
    let left = world.pod.handles().await[0].handles[0].lease_left;
    assert!(left > Duration::from_secs(8) && left <= Duration::from_secs(30), "{left:?}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.pod.handles().await[0].handles[0].state, HandleState::Leaked);
    assert_eq!(world.count(|counters| &counters.leaked_handles), 1);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(world.pod.handles().await[0].handles.is_empty());
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaked_handle_is_logged_once_as_an_alert() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    world.pod.report_handle(report(&world, "cmpl-leaks")).await.unwrap();
    world.pod.report_handle(report(&world, "cmpl-read")).await.unwrap();
    world.pod.release_handle(DpRank(OFFSET), &EngineRequestId::new("cmpl-read"), LetGo::Read).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let text = String::from_utf8(log.0.lock().clone()).unwrap();
    let alerts: Vec<&str> = text.lines().filter(|line| line.contains("alert=\"handle_leaked\"")).collect();
    assert_eq!(alerts.len(), 1, "{text}");
    assert!(alerts[0].contains("cmpl-leaks") && alerts[0].contains("WARN"), "{}", alerts[0]);
}

#[tokio::test(start_paused = true)]
async fn handles_of_others_are_refused() {
    let world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    let mut foreign = report(&world, "cmpl-1");
    foreign.params = world.p.prefill("cmpl-1", &[1]);
    assert_eq!(world.pod.report_handle(foreign).await.unwrap_err().code().as_str(), "params_invalid");
    let mut unknown = report(&world, "cmpl-1");
    unknown.dp_rank = DpRank(0);
    assert_eq!(world.pod.report_handle(unknown).await.unwrap_err().code().as_str(), "rank_unknown");
    let decode = World::ready(Setup::default()).await;
    let error = decode.pod.report_handle(report(&decode, "cmpl-1")).await.unwrap_err();
    assert_eq!(error.code().as_str(), "params_invalid");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_what_d_has_yet_to_read_and_for_the_hook_that_asks_for_it() {
    let budget = Duration::from_secs(15);
    let world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    world.pod.report_handle(report(&world, "cmpl-2")).await.unwrap();
    world.settle().await;
    let (pod, begun) = (world.pod.clone(), tokio::time::Instant::now());
    let hook = async {
        let quiet = pod.until_quiet(Duration::from_secs(3), Duration::from_secs(60)).await;
        (quiet, begun.elapsed())
    };
    let drain = async {
        let how = world.pod.shut_down(budget).await;
        (how, begun.elapsed())
    };
    let router = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let release = |request: &str, why| {
            let (pod, request) = (pod.clone(), EngineRequestId::new(request));
            async move { pod.release_handle(DpRank(OFFSET), &request, why).await }
        };
        // Both ways to let go work to the end.
        release("cmpl-1", LetGo::Read).await.unwrap();
        release("cmpl-2", LetGo::Abandoned).await.unwrap();
        begun.elapsed()
    };
    let ((quiet, answered), (how, ended), released) = tokio::join!(hook, drain, router);
    assert_eq!(quiet, Ok(()));
    assert!(answered >= released + Duration::from_secs(3), "{answered:?} after {released:?}");
    assert_eq!(how, sidecar::model::ShutDown::Drained);
    assert!(ended >= answered && ended < budget, "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_a_reader_no_longer_than_its_budget() {
    let budget = Duration::from_secs(15);
    let world = World::ready(Setup { role: Role::Prefill, ..Setup::default() }).await;
    world.pod.report_handle(report(&world, "cmpl-1")).await.unwrap();
    world.settle().await;
    let begun = tokio::time::Instant::now();
    world.pod.shut_down(budget).await;
    assert!(begun.elapsed() >= budget && begun.elapsed() < budget + Duration::from_secs(1), "{:?}", begun.elapsed());
}
