//! What is read of the API's lists, events and pods; the rest of them is passed over.

use std::net::IpAddr;

use serde::Deserialize;

use crate::Found;

/// A page of a list.
#[derive(Debug)]
pub(super) struct List {
    /// The pods that can be talked to.
    pub(super) found: Vec<Found>,
    /// Where a watch goes on.
    pub(super) version: String,
    /// The next page, when there is one.
    pub(super) more: Option<String>,
}

/// One line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A pod came or changed; `None` when it cannot be talked to (yet, or any more).
    Changed { key: String, pod: Option<Found> },
    /// A pod has gone.
    Deleted { key: String },
    /// Nothing but a newer version.
    Bookmark,
    /// The watch cannot go on from its version.
    Ended,
}

pub(super) fn list(page: &[u8]) -> serde_json::Result<List> {
    let ListJson { metadata, items } = serde_json::from_slice(page)?;
    let more = metadata.next.filter(|token| !token.is_empty());
    let found = items.into_iter().filter_map(PodJson::found).collect();
    Ok(List { found, version: metadata.version, more })
}

pub(super) fn event(line: &[u8]) -> serde_json::Result<Event> {
    let EventJson { kind, object } = serde_json::from_slice(line)?;
    let pod = || serde_json::from_str::<PodJson>(object.get());
    Ok(match kind.as_str() {
        "ADDED" | "MODIFIED" => {
            let pod = pod()?;
            Event::Changed { key: pod.metadata.key(), pod: pod.found() }
        }
        "DELETED" => Event::Deleted { key: pod()?.metadata.key() },
        "BOOKMARK" => Event::Bookmark,
        // "ERROR": the version is too old, or the server is in trouble; a kind that we do not know is no reason to go on either.
        _ => Event::Ended,
    })
}

#[derive(Deserialize)]
struct ListJson {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<PodJson>,
}

#[derive(Default, Deserialize)]
struct ListMetadata {
    #[serde(default, rename = "resourceVersion")]
    version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct EventJson {
    #[serde(rename = "type")]
    kind: String,
    object: Box<serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct PodJson {
    metadata: PodMetadata,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct PodMetadata {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "deletionTimestamp")]
    deleted: Option<String>,
}

impl PodMetadata {
    fn key(&self) -> String {
        if self.uid.is_empty() { self.name.clone() } else { self.uid.clone() }
    }
}

#[derive(Default, Deserialize)]
struct PodStatus {
    #[serde(default)]
    phase: String,
    #[serde(default, rename = "podIP")]
    address: Option<String>,
}

impl PodJson {
    /// A pod that has an address and has not ended. One that still starts counts: its sidecar answers before its engine is up, and says
    /// itself what is ready.
    fn found(self) -> Option<Found> {
        if ["Succeeded", "Failed"].contains(&self.status.phase.as_str()) {
            return None;
        }
        let address: IpAddr = self.status.address.as_deref()?.parse().ok()?;
        Some(Found { key: self.metadata.key(), address, leaving: self.metadata.deleted.is_some() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_counts_from_its_address_to_its_end() {
        let page = br#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x"},"items":[
            {"metadata":{"name":"a","uid":"1"},"status":{"phase":"Running","podIP":"10.0.0.1"}},
            {"metadata":{"name":"b","uid":"2"},"status":{"phase":"Pending"}},
            {"metadata":{"name":"c","uid":"3"},"status":{"phase":"Pending","podIP":"fd00::3"}},
            {"metadata":{"name":"d","uid":"4","deletionTimestamp":"2026-01-01T00:00:00Z"},"status":{"phase":"Running","podIP":"10.0.0.4"}},
            {"metadata":{"name":"e","uid":"5"},"status":{"phase":"Failed","podIP":"10.0.0.5"}}]}"#;
        let List { found, version, more } = list(page).unwrap();
        let shown: Vec<_> = found.iter().map(|pod| (pod.key.as_str(), pod.address.to_string(), pod.leaving)).collect();
        let address = str::to_owned;
        assert_eq!(
            shown,
            [("1", address("10.0.0.1"), false), ("3", address("fd00::3"), false), ("4", address("10.0.0.4"), true)]
        );
        assert_eq!((version.as_str(), more.as_deref()), ("7", Some("x")));
    }

    #[test]
    fn every_line_of_a_watch_has_a_meaning() {
        let of = |text: &str| event(text.as_bytes()).unwrap();
        let pod = r#"{"metadata":{"uid":"1"},"status":{"phase":"Running","podIP":"10.0.0.1"}}"#;
        let key = || "1".to_owned();
        let found = Found { key: key(), address: "10.0.0.1".parse().unwrap(), leaving: false };
        assert_eq!(
            of(&format!(r#"{{"type":"ADDED","object":{pod}}}"#)),
            Event::Changed { key: key(), pod: Some(found) }
        );
        let over = r#"{"type":"MODIFIED","object":{"metadata":{"uid":"1"},"status":{"phase":"Succeeded","podIP":"10.0.0.1"}}}"#;
        assert_eq!(of(over), Event::Changed { key: key(), pod: None });
        assert_eq!(of(&format!(r#"{{"type":"DELETED","object":{pod}}}"#)), Event::Deleted { key: key() });
        assert_eq!(of(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#), Event::Bookmark);
        assert_eq!(of(r#"{"type":"ERROR","object":{"code":410}}"#), Event::Ended);
        assert!(event(b"nonsense").is_err());
    }
}
