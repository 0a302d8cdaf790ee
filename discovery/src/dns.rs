//! The addresses of a name, as a headless Service has one for each of its pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Found, Publisher, Seen};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks for a name's addresses every so often until `stop`. A name that cannot be resolved leaves the last answer standing: resolvers
/// fail far more often than all pods go at once, and a pod that has gone is not ready anyway.
pub async fn follow(host: String, every: Duration, told: Publisher, stop: CancellationToken) {
    let look = || async { timeout(DEADLINE, lookup_host((host.as_str(), 0))).await };
    loop {
        let answer = tokio::select! { () = stop.cancelled() => return, answer = look() => answer };
        let trouble = match answer {
            Ok(Ok(addresses)) => {
                told.synced(Instant::now());
                take(&host, addresses.map(|address| address.ip()).collect(), &told);
                None
            }
            Ok(Err(error)) => Some(format!("{host} cannot be resolved: {error}")),
            Err(_late) => Some(format!("{host} is not resolved within {DEADLINE:?}")),
        };
        if let Some(trouble) = trouble
            && told.failed(trouble.clone())
        {
            warn!(host, trouble, "a name is not resolved; its last addresses stand");
        }
        tokio::select! { () = stop.cancelled() => return, () = sleep(every) => {} }
    }
}

fn take(host: &str, addresses: BTreeSet<IpAddr>, told: &Publisher) {
    let found = addresses.into_iter().map(|address| Found { key: address.to_string(), address, leaving: false });
    let now = Seen::of(found.collect());
    let count = now.pods.len();
    if told.publish(now) {
        info!(host, addresses = count, "a name's addresses have changed");
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn a_name_s_addresses_are_found_and_a_name_that_is_none_is_trouble() {
        let (told, mut seen, tally) = Publisher::new(Instant::now());
        let stop = CancellationToken::new();
        let every = Duration::from_secs(3600);
        let task = TaskTracker::new().spawn(follow("localhost".to_owned(), every, told, stop.clone()));
        let heard = seen.wait_for(|seen| seen.heard).await.unwrap().clone();
        assert!(heard.pods.iter().any(|pod| pod.address.is_loopback() && !pod.leaving), "{heard:?}");
        stop.cancel();
        task.await.unwrap();
        assert_eq!((tally.syncs(), tally.failures()), (1, 0));

        let (told, mut later, tally) = Publisher::new(Instant::now());
        told.publish(heard.clone());
        let stop = CancellationToken::new();
        let task = TaskTracker::new().spawn(follow("no-such-name.invalid".to_owned(), every, told, stop.clone()));
        let now = later.wait_for(|seen| seen.trouble.is_some()).await.unwrap().clone();
        assert_eq!(now.pods, heard.pods, "the last answer stands");
        stop.cancel();
        task.await.unwrap();
        assert_eq!((tally.syncs(), tally.failures()), (0, 1));
    }
}
