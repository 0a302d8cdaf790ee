//! Pods by label selector. A list says who is there, a watch says what changes, and after every break the list is asked for again: a
//! deletion that was missed does not keep a dead pod. The API server ends each watch after a minute, so nothing that it never said stays
//! unknown for longer.
//!
//! | module | is |
//! |---|---|
//! | [`api`] | the connection: in the cluster with its certificate authority and token, both read anew each time |
//! | `objects` | what is read of lists, events and pods |

pub mod api;
mod objects;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{Found, Publisher, Seen, with_causes};
use api::{Api, ApiError, Connection};
use objects::{Event, List};

/// Longest wait for a whole list.
const LIST_DEADLINE: Duration = Duration::from_secs(30);
/// Pods of one page of a list.
const PAGE: usize = 500;
/// Most bytes of a page.
const MAX_PAGE: usize = 64 << 20;
/// Most bytes of one event.
const MAX_EVENT: usize = 4 << 20;
/// How long the API server is asked to keep a watch open.
const WATCH_SECONDS: u64 = 60;
/// A watch that is open so much longer has been forgotten by the other side.
const GRACE: Duration = Duration::from_secs(15);
/// Wait before the first question after a failed one; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait before the next question.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A watch that lasted so long was no failure.
const LASTED: Duration = Duration::from_secs(5);

/// Which pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Their namespace.
    pub namespace: String,
    /// Their labels, as `key=value,…`.
    pub selector: String,
}

impl Wanted {
    fn path(&self, query: &str) -> String {
        // A namespace is a DNS label and needs no escaping; a selector's `=`, `,` and `/` may stand in a query.
        format!("/api/v1/namespaces/{}/pods?labelSelector={}&{query}", self.namespace, escaped(&self.selector))
    }
}

/// Follows the pods until `stop`.
pub async fn follow(api: Api, wanted: Wanted, told: Publisher, stop: CancellationToken) {
    let mut backoff = MIN_BACKOFF;
    loop {
        let started = Instant::now();
        let ended = tokio::select! { () = stop.cancelled() => return, ended = once(&api, &wanted, &told) => ended };
        match ended {
            Ok(why) => debug!(why, selector = wanted.selector, "a watch of pods ended; listing again"),
            Err(error) => {
                let trouble = with_causes(&error);
                if told.failed(trouble.clone()) {
                    warn!(selector = wanted.selector, trouble, "pods cannot be followed; the last ones stand");
                }
            }
        }
        if started.elapsed() >= LASTED {
            backoff = MIN_BACKOFF;
        }
        // Up to half again as long: several routers must not ask in step.
        let wait = backoff.mul_f64(1.0 + fastrand::f64() / 2.0);
        tokio::select! { () = stop.cancelled() => return, () = sleep(wait) => {} }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// One list and the watch that continues it; why the watch ended.
async fn once(api: &Api, wanted: &Wanted, told: &Publisher) -> Result<&'static str, ApiError> {
    let mut connection = api.connect().await?;
    let listed = timeout(LIST_DEADLINE, list(&mut connection, wanted)).await;
    let (mut pods, version) =
        listed.map_err(|_late| ApiError::Late { what: "a list of pods", after: LIST_DEADLINE })??;
    told.synced(Instant::now());
    publish(&pods, wanted, told);
    let query = format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}");
    let until = Instant::now() + Duration::from_secs(WATCH_SECONDS) + GRACE;
    let mut body = connection.get(&wanted.path(&query)).await?;
    let mut held = BytesMut::new();
    loop {
        let Ok(frame) = timeout_at(until, body.frame()).await else { return Ok("silent for too long") };
        let Some(frame) = frame else { return Ok("closed") };
        let Ok(data) = frame.map_err(ApiError::Read)?.into_data() else { continue };
        told.heard(Instant::now());
        held.extend_from_slice(&data);
        while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
            let line = held.split_to(end + 1);
            if line.trim_ascii().is_empty() {
                continue;
            }
            match objects::event(&line).map_err(ApiError::Json)? {
                Event::Changed { key, pod: Some(pod) } => drop(pods.insert(key, pod)),
                Event::Changed { key, pod: None } | Event::Deleted { key } => drop(pods.remove(&key)),
                Event::Bookmark => continue,
                Event::Ended => return Ok("too old"),
            }
            publish(&pods, wanted, told);
        }
        if held.len() > MAX_EVENT {
            return Err(ApiError::TooLong { what: "an event", most: MAX_EVENT });
        }
    }
}

/// All pages of the list, and the version from which a watch goes on.
async fn list(connection: &mut Connection, wanted: &Wanted) -> Result<(BTreeMap<String, Found>, String), ApiError> {
    let mut pods = BTreeMap::new();
    let mut next = String::new();
    loop {
        let more = if next.is_empty() { String::new() } else { format!("&continue={}", escaped(&next)) };
        let body = connection.get(&wanted.path(&format!("limit={PAGE}{more}"))).await?;
        let List { found, version, more } = objects::list(&read(body).await?).map_err(ApiError::Json)?;
        pods.extend(found.into_iter().map(|pod| (pod.key.clone(), pod)));
        match more {
            Some(token) => next = token,
            None => return Ok((pods, version)),
        }
    }
}

async fn read(body: Incoming) -> Result<bytes::Bytes, ApiError> {
    let read = Limited::new(body, MAX_PAGE).collect().await;
    Ok(read.map_err(|source| ApiError::Page { most: MAX_PAGE, source })?.to_bytes())
}

fn publish(pods: &BTreeMap<String, Found>, wanted: &Wanted, told: &Publisher) {
    if told.publish(Seen::of(pods.values().cloned().collect())) {
        info!(selector = wanted.selector, pods = pods.len(), "pods have changed");
    }
}

/// For a value of a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/,=".contains(&byte);
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_stands_in_the_query_as_it_is_and_other_bytes_escaped() {
        let wanted = Wanted { namespace: "ns".to_owned(), selector: "llm-d.ai/role=decode,tier=a b&c".to_owned() };
        let path = wanted.path("limit=2");
        assert_eq!(path, "/api/v1/namespaces/ns/pods?labelSelector=llm-d.ai/role=decode,tier=a%20b%26c&limit=2");
        assert!(path.parse::<http::Uri>().is_ok());
    }
}
