//! The board after each thing that discovery may see.

use clap::{Args as _, Command, FromArgMatches as _};
use tokio_util::task::TaskTracker;

use super::*;
use crate::choice::Policies;
use crate::config::Args;
use crate::sidecar::Sidecars;
use crate::upstream::Pooled;

fn hands() -> Hands {
    let line = "router --prefill http://10.9.9.9:1 --decode http://10.9.9.9:2".split(' ');
    let matches = Args::augment_args(Command::new("router")).get_matches_from(line);
    let config = Args::from_arg_matches(&matches).unwrap().check().unwrap();
    let upstream: Arc<dyn crate::upstream::Upstream> = Arc::new(Pooled::tcp(std::time::Duration::from_secs(1), None));
    let stop = CancellationToken::new();
    let watchers = Watchers {
        sidecars: Sidecars::new(Arc::clone(&upstream), None),
        upstream,
        policies: Arc::new(Policies::new(config.choice.policies)),
        tasks: TaskTracker::new(),
    };
    Hands {
        board: Arc::new(Board::new(config.failure.breaker, stop.clone())),
        watchers,
        stop,
        sidecars: Some(Scheme::Http),
    }
}

fn source() -> Source {
    Source {
        side: Side::Decode,
        by: "kubernetes",
        what: "labels".to_owned(),
        engine: (Scheme::Http, 8200),
        sidecar: Some((Scheme::Http, 7700)),
        ranks: 2,
    }
}

fn found(key: &str, address: &str, leaving: bool) -> Found {
    Found { key: key.to_owned(), address: address.parse().unwrap(), leaving }
}

/// `decode-0 http://10.0.0.1:8200/ http://10.0.0.1:7700/` for each pod, with `draining` where it is.
fn shown(hands: &Hands) -> Vec<String> {
    let word = |pod: Arc<Pod>| {
        let sidecar = pod.sidecar.as_ref().map(ToString::to_string).unwrap_or_default();
        let draining = if pod.is_draining() { " draining" } else { "" };
        format!("{} {} {sidecar}{draining}", pod.id, pod.engine)
    };
    hands.board.pods().into_iter().map(word).collect()
}

#[tokio::test]
async fn the_board_follows_what_is_found() {
    let (hands, source, mut known) = (hands(), source(), BTreeMap::new());
    let mut now = |pods: &[Found]| {
        reconcile(&source, pods, &mut known, &hands);
        shown(&hands)
    };
    let (first, second) = (found("a", "10.0.0.1", false), found("b", "fd00::2", false));
    let one = "decode-0 http://10.0.0.1:8200/ http://10.0.0.1:7700/";
    let two = "decode-1 http://[fd00::2]:8200/ http://[fd00::2]:7700/";
    assert_eq!(now(&[first.clone(), second.clone()]), [one, two]);
    assert_eq!(now(&[first, second.clone()]), [one, two], "nothing changes");
    let moved = "decode-2 http://10.0.0.4:8200/ http://10.0.0.4:7700/";
    assert_eq!(
        now(&[found("a", "10.0.0.4", false), second.clone()]),
        [two, moved],
        "a node that restarts gives a pod another address"
    );
    assert_eq!(now(&[found("a", "10.0.0.4", true), second.clone()]), [two, &format!("{moved} draining")]);
    assert_eq!(now(std::slice::from_ref(&second)), [two]);
    assert_eq!(now(&[]), Vec::<String>::new());
    assert_eq!(now(&[found("c", "10.0.0.3", true)]), Vec::<String>::new(), "it is about to go");
    hands.stop.cancel();
}

#[tokio::test]
async fn a_new_pod_may_have_the_address_of_one_that_has_gone() {
    let (hands, source, mut known) = (hands(), source(), BTreeMap::new());
    reconcile(&source, &[found("a", "10.0.0.1", false)], &mut known, &hands);
    reconcile(&source, &[found("b", "10.0.0.1", false)], &mut known, &hands);
    assert_eq!(
        shown(&hands),
        ["decode-1 http://10.0.0.1:8200/ http://10.0.0.1:7700/"],
        "another pod: nothing is carried over"
    );
    hands.stop.cancel();
}

#[tokio::test]
async fn a_pod_that_a_flag_names_is_not_discovery_s_to_remove() {
    let (hands, source, mut known) = (hands(), source(), BTreeMap::new());
    let named =
        PodSpec { side: Side::Decode, engine: "http://10.0.0.1:8200/".parse().unwrap(), sidecar: None, ranks: 1 };
    hands.board.add(named).unwrap();
    reconcile(&source, &[found("a", "10.0.0.1", false)], &mut known, &hands);
    reconcile(&source, &[], &mut known, &hands);
    assert_eq!(shown(&hands), ["decode-0 http://10.0.0.1:8200/ "]);
    hands.stop.cancel();
}
