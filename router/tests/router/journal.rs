//! What the fakes saw, in one order.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader looks for the events that it knows")]

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

/// One thing that a fake saw or did.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Prefill {
        rank: Option<u16>,
        headers: HeaderMap,
        body: Vec<u8>,
    },
    Decode {
        rank: Option<u16>,
        headers: HeaderMap,
        body: Vec<u8>,
        request: Option<String>,
    },
    /// A request to a decode engine on a path that is no completion's.
    Other {
        method: Method,
        /// With its query.
        path: String,
        headers: HeaderMap,
        body: Vec<u8>,
    },
    /// A decode's answer was dropped before its end, or the request while it was being worked on.
    DecodeCancelled,
    PrefillCancelled,
    Asked {
        body: Value,
    },
    Receipt {
        rank: u16,
        request: String,
    },
    Claimed {
        transfer: String,
    },
    Finished {
        transfer: String,
    },
    Reported {
        body: Value,
    },
    Released {
        request: String,
        rank: u16,
    },
    Forgotten {
        request: String,
        rank: u16,
    },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Journal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    events: Mutex<Vec<Event>>,
    more: Notify,
}

impl Journal {
    pub(crate) fn write(&self, event: Event) {
        self.0.events.lock().push(event);
        self.0.more.notify_waiters();
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.events.lock().clone()
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events().iter().filter(|event| wanted(event)).count()
    }

    /// The bodies of all prefills or decodes.
    pub(crate) fn bodies(&self, decodes: bool) -> Vec<Vec<u8>> {
        let body = |event| match event {
            Event::Prefill { body, .. } if !decodes => Some(body),
            Event::Decode { body, .. } if decodes => Some(body),
            _ => None,
        };
        self.events().into_iter().filter_map(body).collect()
    }

    pub(crate) fn asked(&self) -> Vec<Value> {
        let body = |event| if let Event::Asked { body } = event { Some(body) } else { None };
        self.events().into_iter().filter_map(body).collect()
    }

    /// Waits until at least `count` events are as wanted.
    pub(crate) async fn wait_for(&self, what: &str, count: usize, wanted: impl Fn(&Event) -> bool) {
        let reached = async {
            loop {
                let more = self.0.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if self.count(&wanted) >= count {
                    return;
                }
                more.await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
        assert!(reached.is_ok(), "{what} did not happen; seen: {:#?}", self.events());
    }
}

/// Writes an event when dropped before being defused.
#[derive(Debug)]
pub(crate) struct Tripwire(Option<(Journal, Event)>);

impl Tripwire {
    pub(crate) fn new(journal: &Journal, event: Event) -> Self {
        Self(Some((journal.clone(), event)))
    }

    pub(crate) fn defuse(&mut self) {
        self.0 = None;
    }
}

impl Drop for Tripwire {
    fn drop(&mut self) {
        if let Some((journal, event)) = self.0.take() {
            journal.write(event);
        }
    }
}
