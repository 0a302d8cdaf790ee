//! `/v1/ranks`: the ranks of this pod, once or as they change.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};
use kv::ids::DpRank;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::events::{Current, Numbered};
use crate::http::Api;
use crate::http::handles;
use crate::http::handles_json::{HandlesJson, Page};
use crate::http::input::{QueryArgs, Segment};
use crate::http::openapi::answers;
use crate::http::rank_json::RankJson;
use crate::model::RankSnapshot;
use crate::problem::Problem;

/// A comment goes out after this much silence, so that a router knows within a second that the sidecar has gone.
const KEEP_ALIVE: Duration = Duration::from_millis(250);

/// How long an ending stream waits for the ranks to say that they are draining.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// All ranks of this pod.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RanksJson {
    ranks: Vec<RankJson>,
}

/// Every DP rank of this pod
#[utoipa::path(
    get,
    path = "/v1/ranks",
    operation_id = "list_ranks",
    tag = "ranks",
    responses((status = 200, description = "In the order of their numbers", body = RanksJson), answers::Always),
)]
pub(super) async fn list(State(api): State<Api>) -> Json<RanksJson> {
    let ranks = api.pod().ranks().borrow().clone();
    Json(RanksJson { ranks: ranks.iter().map(|rank| RankJson::from(&**rank)).collect() })
}

/// One DP rank (global number) with a page of its block handles
#[utoipa::path(
    get,
    path = "/v1/ranks/{rank}",
    operation_id = "rank",
    tag = "ranks",
    params(("rank" = u16, Path, description = "Global", maximum = 65535), Page),
    responses((status = 200, description = "The rank", body = OneRankJson), answers::OneRank),
)]
pub(super) async fn one(
    State(api): State<Api>,
    segment: Segment,
    QueryArgs(page): QueryArgs<Page>,
) -> Result<Json<OneRankJson>, Problem> {
    let wanted = segment.rank()?;
    let ranks = api.pod().ranks().borrow().clone();
    let found = ranks.iter().find(|known| known.dp_rank == wanted).map(|rank| RankJson::from(&**rank));
    let rank = found.ok_or_else(|| foreign(wanted, &ranks))?;
    let block_handles = handles::held(&api, Some(wanted.0), &page).await;
    Ok(Json(OneRankJson { rank, block_handles }))
}

/// A rank and who holds its blocks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OneRankJson {
    #[serde(flatten)]
    rank: RankJson,
    block_handles: HandlesJson,
}

/// A rank of another pod, answered with the range that this one owns.
fn foreign(rank: DpRank, ranks: &[Arc<RankSnapshot>]) -> Problem {
    let owned = ranks.iter().map(|rank| rank.dp_rank.0);
    let (first, last) = (owned.clone().min().unwrap_or(0), owned.max());
    let end = last.map_or(0, |last| last.saturating_add(1));
    Problem::from(&crate::model::TransferError::RankUnknown { rank, owned: first..end })
}

/// The state of every rank on connect and whenever one changes
///
/// Events `rank`, each with a whole RankJson. As every connection starts with all of them, a `Last-Event-ID` needs no replay and is
/// accepted without effect.
#[utoipa::path(
    get,
    path = "/v1/ranks/events",
    operation_id = "rank_events",
    tag = "ranks",
    responses(
        (status = 200, description = "Server-sent events", body = String, content_type = "text/event-stream"),
        answers::Always,
    ),
)]
pub(super) async fn events(State(api): State<Api>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let follower = Follower {
        source: api.0.events.follow(),
        gate: api.0.gate.clone(),
        pending: VecDeque::new(),
        seen: 0,
        ended: false,
    };
    let stream = unfold(follower, async |mut follower| {
        let next = follower.next().await?;
        Some((Ok(event(&next)), follower))
    });
    Sse::new(Box::pin(stream)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

fn event(numbered: &Numbered) -> Event {
    let event = Event::default().event("rank").id(numbered.id.to_string());
    let rank = RankJson::from(&*numbered.rank);
    // A rank always has a JSON form; a client would skip an event without data.
    event.json_data(&rank).unwrap_or_default()
}

/// One connection's place in the stream of states.
#[derive(Debug)]
struct Follower {
    source: watch::Receiver<Current>,
    gate: CancellationToken,
    pending: VecDeque<Numbered>,
    seen: u64,
    ended: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Numbered> {
        loop {
            if let Some(next) = self.pending.pop_front() {
                self.seen = next.id;
                return Some(next);
            }
            if self.take_newer() {
                continue;
            }
            if self.ended {
                return None;
            }
            self.wait_for_change().await;
        }
    }

    fn take_newer(&mut self) -> bool {
        let current = self.source.borrow_and_update().clone();
        let seen = self.seen;
        self.pending.extend(current.iter().filter(|numbered| numbered.id > seen).cloned());
        !self.pending.is_empty()
    }

    async fn wait_for_change(&mut self) {
        tokio::select! {
            changed = self.source.changed() => self.ended = changed.is_err(),
            () = self.gate.cancelled() => {
                let drained = self.source.wait_for(|ranks| ranks.iter().all(|numbered| numbered.rank.draining));
                // The last words are a courtesy: without them the end of the stream says the same.
                drop(timeout(LAST_WORDS, drained).await);
                self.ended = true;
            }
        }
    }
}
