//! The stream of rank states over a real socket.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::Request;
use futures_util::StreamExt as _;
use serde_json::Value;
use sidecar::lifecycle::Budgets;
use tokio::time::timeout;
use tower::ServiceExt as _;

use crate::rig::Rig;

const SOON: Duration = Duration::from_secs(10);

struct Events {
    body: BodyDataStream,
    buffer: String,
}

#[derive(Debug)]
struct Event {
    name: String,
    id: u64,
    data: Value,
}

impl Events {
    async fn connect(rig: &Rig, last: Option<&str>) -> Self {
        let mut request = Request::get("/v1/ranks/events");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = rig.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// The next event, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                // A block without data is a comment that keeps the connection alive.
                let event = block.contains("data:").then(|| parse(block));
                self.buffer = rest.to_owned();
                if event.is_some() {
                    return event;
                }
                continue;
            }
            let chunk = timeout(SOON, self.body.next()).await.unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    }
}

fn parse(block: &str) -> Event {
    let field = |name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {block}")).trim_start().to_owned()
    };
    Event {
        name: field("event"),
        id: field("id").parse().unwrap(),
        data: serde_json::from_str(&field("data")).unwrap(),
    }
}

#[tokio::test]
async fn whoever_connects_gets_every_rank_once_in_the_order_of_the_ids() {
    let rig = Rig::decode().await;
    for last in [None, Some("1"), Some("9999"), Some("nonsense")] {
        let mut events = Events::connect(&rig, last).await;
        let mut ranks = Vec::new();
        let mut ids = Vec::new();
        while ranks.len() < 2 {
            let event = events.next().await.unwrap();
            assert_eq!(event.name, "rank");
            ids.push(event.id);
            let rank = event.data["dp_rank"].as_u64().unwrap();
            if !ranks.contains(&rank) {
                ranks.push(rank);
            }
        }
        ranks.sort_unstable();
        assert_eq!(ranks, [8, 9]);
        assert!(ids.is_sorted(), "{ids:?}");
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_drain_after_the_last_word_of_each_rank() {
    let rig = Rig::decode().await;
    let mut events = Events::connect(&rig, None).await;
    events.next().await.unwrap();
    let budgets =
        Budgets { drain: Duration::from_secs(1), quiesce: Duration::from_secs(5), close: Duration::from_secs(5) };
    let (pod, lifecycle) = (rig.pod.clone(), rig.lifecycle.clone());
    let ending = async { lifecycle.shut_down(&pod, budgets).await };
    let following = async {
        let mut last = std::collections::BTreeMap::new();
        while let Some(event) = events.next().await {
            last.insert(event.data["dp_rank"].as_u64().unwrap(), event.data["draining"].clone());
        }
        last
    };
    let (_, last) = timeout(SOON, async { tokio::join!(ending, following) }).await.unwrap();
    assert_eq!(last.get(&8), Some(&Value::Bool(true)), "{last:?}");
    assert_eq!(last.get(&9), Some(&Value::Bool(true)), "{last:?}");
}
