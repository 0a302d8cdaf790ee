//! Pods that are on the board because a gateway named them: how many, and for how long.

use clap::{Args as _, Command, FromArgMatches as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::choice::Policies;
use crate::config::{Args, Scheme};
use crate::sidecar::Sidecars;
use crate::upstream::Pooled;
use crate::watch::Watchers;

fn gateway() -> Arc<Gateway> {
    gateway_of(Scheme::Http)
}

fn gateway_of(scheme: Scheme) -> Arc<Gateway> {
    let line = "router --pod-local --prefill-allow 10.0.0.0/8:*".split(' ');
    let matches = Args::augment_args(Command::new("router")).get_matches_from(line);
    let config = Args::from_arg_matches(&matches).unwrap().check().unwrap();
    let pod_local = PodLocal { engine_scheme: scheme, ..config.pod_local.unwrap() };
    let upstream: Arc<dyn crate::upstream::Upstream> = Arc::new(Pooled::tcp(Duration::from_secs(1), None));
    let stop = CancellationToken::new();
    let watchers = Watchers {
        sidecars: Sidecars::new(Arc::clone(&upstream), None),
        upstream,
        policies: Arc::new(Policies::new(config.choice.policies.clone())),
        tasks: TaskTracker::new(),
    };
    let board = Arc::new(Board::new(config.failure.breaker, stop.clone()));
    let hands = Hands { board, watchers, stop, sidecars: Some(scheme) };
    Gateway::new(pod_local, 8000, 2, hands)
}

fn name(gateway: &Gateway, host: usize) -> Option<usize> {
    let engine = format!("10.0.{}.{}:8000", host / 256, host % 256).parse().unwrap();
    gateway.admitted(&engine).map(|pod| pod.id.index)
}

fn kept(gateway: &Gateway) -> usize {
    gateway.hands.board.fleet().side(Side::Prefill).len()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_not_named_any_more_is_forgotten() {
    let gateway = gateway();
    let (first, second) = (name(&gateway, 1).unwrap(), name(&gateway, 2).unwrap());
    assert_eq!((name(&gateway, 1), kept(&gateway)), (Some(first), 2), "named twice, kept once");
    let half = FORGET_AFTER / 2;
    tokio::time::advance(half).await;
    assert_eq!(name(&gateway, 2), Some(second));
    tokio::time::advance(half).await;
    gateway.forget(Instant::now());
    assert_eq!(kept(&gateway), 1, "the second one was named again");
    let pod = on(&gateway.hands.board, &"10.0.0.2:8000".parse().unwrap()).unwrap();
    assert_eq!(pod.sidecar.as_ref().map(ToString::to_string).as_deref(), Some("http://10.0.0.2:7700/"));
    let seat = crate::targets::Target { local: LocalRank(0), rank: DpRank(0), tokens: 1, pod }.occupy();
    tokio::time::advance(half * 2).await;
    gateway.forget(Instant::now());
    assert_eq!(kept(&gateway), 1, "it has work");
    drop(seat);
    gateway.forget(Instant::now());
    assert_eq!(kept(&gateway), 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_pods_are_kept_than_there_is_room_for() {
    let gateway = gateway();
    for host in 0..MOST_NAMED {
        assert_eq!(name(&gateway, host), Some(host));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert_eq!(name(&gateway, 0), Some(0), "now the second one was named the longest ago");
    assert_eq!(name(&gateway, MOST_NAMED), Some(MOST_NAMED));
    assert_eq!(kept(&gateway), MOST_NAMED);
    let left: Vec<usize> = gateway.hands.board.fleet().side(Side::Prefill).iter().map(|pod| pod.id.index).collect();
    assert!(left.contains(&0) && !left.contains(&1), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_named_pod_is_asked_by_the_operators_schemes() {
    let gateway = gateway_of(Scheme::Https);
    let known: http::Uri = "http://10.0.0.2:8000/".parse().unwrap();
    let spec = PodSpec { side: Side::Prefill, engine: known, sidecar: None, ranks: 1 };
    let pod = gateway.hands.board.add(spec).unwrap();
    assert_eq!(name(&gateway, 2), Some(pod.id.index), "who is known is asked as its own URL says");
    let added = name(&gateway, 1).unwrap();
    let fleet = gateway.hands.board.fleet();
    let added = fleet.side(Side::Prefill).iter().find(|pod| pod.id.index == added).unwrap();
    let sidecar = added.sidecar.as_ref().map(ToString::to_string);
    assert_eq!(
        (added.engine.to_string(), sidecar.unwrap()),
        ("https://10.0.0.1:8000/".into(), "https://10.0.0.1:7700/".into())
    );
}
