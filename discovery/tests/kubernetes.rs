//! Following pods, against an API server that answers like Kubernetes' and can forget, fall silent and lose events.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "kubernetes/server.rs"]
mod server;
#[path = "kubernetes/tls.rs"]
mod tls;

use std::sync::Arc;
use std::time::Duration;

use discovery::kubernetes::{Wanted, follow};
use discovery::{Publisher, Seen, Tally};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use server::{Server, pod};

/// For a loaded machine; a pass never waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Following {
    seen: watch::Receiver<Seen>,
    tally: Arc<Tally>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Following {
    fn start(api: discovery::kubernetes::api::Api) -> Self {
        let (told, seen, tally) = Publisher::new(Instant::now());
        let stop = CancellationToken::new();
        let wanted = Wanted { namespace: "ns".to_owned(), selector: "llm-d.ai/role=decode".to_owned() };
        let task = TaskTracker::new().spawn(follow(api, wanted, told, stop.clone()));
        Self { seen, tally, stop, task }
    }

    /// Waits until the pods are these, each as `address` or `address leaving`.
    async fn until(&mut self, what: &str, wanted: &[&str]) -> Seen {
        let shown = |seen: &Seen| -> Vec<String> {
            let of = |pod: &discovery::Found| format!("{}{}", pod.address, if pod.leaving { " leaving" } else { "" });
            seen.pods.iter().map(of).collect()
        };
        let mut last = Seen::default();
        let found = self.seen.wait_for(|seen| {
            last = seen.clone();
            seen.heard && shown(seen) == wanted
        });
        let found = tokio::time::timeout(PATIENCE, found).await.map(|found| found.unwrap().clone());
        found.unwrap_or_else(|_| panic!("{what}: {wanted:?} was due, seen is {last:?}"))
    }

    async fn until_trouble(&mut self, words: &str) -> Seen {
        let mut last = Seen::default();
        let found = self.seen.wait_for(|seen| {
            last = seen.clone();
            seen.trouble.as_deref().is_some_and(|trouble| trouble.contains(words))
        });
        let found = tokio::time::timeout(PATIENCE, found).await.map(|found| found.unwrap().clone());
        found.unwrap_or_else(|_| panic!("{words:?} was due, seen is {last:?}"))
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn pods_come_change_leave_and_go() {
    let server = Server::start().await;
    server.set(pod("1", "Running", Some("10.0.0.1")));
    server.set(pod("2", "Pending", None));
    let mut following = Following::start(server.api());
    following.until("the list", &["10.0.0.1"]).await;
    server.set(pod("2", "Pending", Some("10.0.0.2")));
    following.until("an address", &["10.0.0.1", "10.0.0.2"]).await;
    server.set(server::leaving("1", "10.0.0.1"));
    following.until("a deletion that is under way", &["10.0.0.1 leaving", "10.0.0.2"]).await;
    server.delete("1");
    following.until("the deletion", &["10.0.0.2"]).await;
    server.set(pod("2", "Failed", Some("10.0.0.2")));
    following.until("a pod that has ended", &[]).await;
    assert!(
        server.asked().iter().all(|path| path.contains("labelSelector=llm-d.ai/role=decode")),
        "{:?}",
        server.asked()
    );
    following.end().await;
}

#[tokio::test]
async fn a_deletion_that_the_server_never_tells_is_known_after_the_next_list() {
    let server = Server::start().await;
    for n in ["1", "2"] {
        server.set(pod(n, "Running", Some(&format!("10.0.0.{n}"))));
    }
    let mut following = Following::start(server.api());
    following.until("the list", &["10.0.0.1", "10.0.0.2"]).await;
    server.watched(1).await;
    server.lose_events(true);
    server.delete("1");
    server.set(pod("3", "Running", Some("10.0.0.3")));
    let lists = server.lists();
    server.close_watches();
    following.until("what a list says", &["10.0.0.2", "10.0.0.3"]).await;
    assert!(server.lists() > lists, "it must have come from a list");
    following.end().await;
}

#[tokio::test]
async fn a_version_that_is_too_old_leads_to_a_list() {
    let server = Server::start().await;
    server.set(pod("1", "Running", Some("10.0.0.1")));
    let mut following = Following::start(server.api());
    following.until("the list", &["10.0.0.1"]).await;
    server.watched(1).await;
    server.lose_events(true);
    server.delete("1");
    server.lose_events(false);
    server.tell_gone();
    following.until("what a list says", &[]).await;
    following.end().await;
}

#[tokio::test]
async fn while_the_server_is_away_the_last_pods_stand() {
    let server = Server::start().await;
    server.set(pod("1", "Running", Some("10.0.0.1")));
    let mut following = Following::start(server.api());
    following.until("the list", &["10.0.0.1"]).await;
    server.watched(1).await;
    server.refuse(Some(503));
    server.close_watches();
    let seen = following.until_trouble("503").await;
    assert_eq!(seen.pods.len(), 1, "the last pods stand: {seen:?}");
    server.refuse(Some(403));
    following.until_trouble("pods is forbidden").await;
    server.refuse(None);
    server.delete("1");
    let (failures, syncs) = (following.tally.failures(), following.tally.syncs());
    assert!(failures >= 2, "{failures}");
    let seen = following.until("back", &[]).await;
    assert_eq!(seen.trouble, None);
    assert!(following.tally.syncs() > syncs, "it was listed again");
    assert!(following.tally.age(Instant::now()) < PATIENCE);
    following.end().await;
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let server = Server::start().await;
    let addresses: Vec<String> = (1..=7).map(|n| format!("10.0.0.{n}")).collect();
    for (n, address) in (1..).zip(&addresses) {
        server.set(pod(&n.to_string(), "Running", Some(address)));
    }
    server.pages_of(3);
    let mut following = Following::start(server.api());
    following.until("all pages", &addresses.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(server.lists(), 3, "{:?}", server.asked());
    following.end().await;
}

#[tokio::test]
async fn the_server_s_certificate_and_the_account_s_token_are_checked_and_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (tls::Authority::new("ours"), tls::Authority::new("theirs"));
    let server = Server::start_tls(&ours).await;
    server.set(pod("1", "Running", Some("10.0.0.1")));
    server.want_token("second");
    let (token, authority) = (folder.path().join("token"), folder.path().join("ca.crt"));
    std::fs::write(&token, "first\n").unwrap();
    std::fs::write(&authority, theirs.pem()).unwrap();
    let mut api = server.api();
    api.token = Some(token.clone());
    api.authority = Some(authority.clone());
    let mut following = Following::start(api);
    following.until_trouble("UnknownIssuer").await;
    std::fs::write(&authority, ours.pem()).unwrap();
    following.until_trouble("401").await;
    std::fs::write(&token, "second\n").unwrap();
    following.until("trusted, and with the right token", &["10.0.0.1"]).await;
    following.end().await;
}
