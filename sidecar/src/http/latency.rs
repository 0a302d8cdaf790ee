//! `/v1/latency`: percentiles per rank, peer and stage, and what stands out.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use kv::ids::EngineId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::config::parse;
use crate::http::openapi::{answers, schemas};
use crate::http::transfer_json::whole_ms;
use crate::http::{Api, input::QueryArgs};
use crate::latency::causes::{Cause, Subject};
use crate::latency::{By, Group, MAX_WINDOW, Query, Report, SUB_WINDOW};
use crate::problem::Problem;

/// What is told when nothing else is asked for.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);

/// How a peer is called that is not kept apart any more.
const OTHER: &str = "other";

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LatencyQuery {
    /// How far back, more than 0s and at most 120s; 60s unless asked for
    #[param(schema_with = schemas::window, example = "60s")]
    window: Option<String>,
    /// Any subset of rank, peer and stage, each at most once; all three unless asked for
    #[param(schema_with = schemas::by, example = "peer,stage")]
    by: Option<String>,
}

impl LatencyQuery {
    fn query(&self) -> Result<Query, Problem> {
        let window = self.window.as_deref().map_or(Ok(DEFAULT_WINDOW), window)?;
        let by = self.by.as_deref().map_or(Ok(By { rank: true, peer: true, stage: true }), by)?;
        Ok(Query { window, by })
    }
}

fn window(text: &str) -> Result<Duration, Problem> {
    let window = parse::duration(text).map_err(|error| Problem::field("window", &error.to_string()))?;
    if window.is_zero() || window > MAX_WINDOW {
        return Err(Problem::field("window", "must be more than 0s and at most 120s"));
    }
    Ok(window)
}

/// Any subset of the three words; the empty one makes one group of everything.
fn by(text: &str) -> Result<By, Problem> {
    let mut by = By { rank: false, peer: false, stage: false };
    for word in text.split(',').filter(|_| !text.is_empty()) {
        let flag = match word.trim() {
            "rank" => &mut by.rank,
            "peer" => &mut by.peer,
            "stage" => &mut by.stage,
            _ => return Err(Problem::field("by", "is a list of rank, peer and stage, as in by=peer,stage")),
        };
        if std::mem::replace(flag, true) {
            return Err(Problem::field("by", "names one of rank, peer and stage twice"));
        }
    }
    Ok(by)
}

/// Percentiles of the recent transfers' times, and which peer or rank makes a stage slow
#[utoipa::path(
    get,
    path = "/v1/latency",
    operation_id = "latency",
    tag = "debugging",
    params(LatencyQuery),
    responses((status = 200, description = "Per group", body = LatencyJson), answers::Asked),
)]
pub(super) async fn report(
    State(api): State<Api>,
    QueryArgs(query): QueryArgs<LatencyQuery>,
) -> Result<Json<LatencyJson>, Problem> {
    let query = query.query()?;
    let latency = api.pod().latency();
    let reporting = tokio::task::spawn_blocking(move || latency.report(&query));
    let report = reporting.await.map_err(|_broken| Problem::internal())?;
    Ok(Json(LatencyJson::new(&query, &report)))
}

/// Where the transfers of a window spent their time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LatencyJson {
    window_ms: u64,
    /// How far back the values really go: sub-windows are taken whole
    covered_ms: u64,
    sub_window_ms: u64,
    by: Vec<&'static str>,
    /// What stands out, the worst first
    causes: Vec<CauseJson>,
    groups: Vec<GroupJson>,
}

/// The percentiles of one group, in microseconds.
#[derive(Debug, Serialize, ToSchema)]
struct GroupJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    dp_rank: Option<u16>,
    /// The remote engine; `other` is all those that are not kept apart
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// `total` where groups are not made by stage
    #[schema(schema_with = schemas::measure)]
    stage: &'static str,
    count: u64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    max_us: u64,
}

/// A peer or a rank (one of the two is there) whose median is far above everybody else's.
#[derive(Debug, Serialize, ToSchema)]
struct CauseJson {
    #[schema(schema_with = schemas::stage)]
    stage: &'static str,
    p50_us: u64,
    others_p50_us: u64,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dp_rank: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

impl LatencyJson {
    fn new(query: &Query, report: &Report) -> Self {
        let words = [("rank", query.by.rank), ("peer", query.by.peer), ("stage", query.by.stage)];
        Self {
            window_ms: whole_ms(query.window),
            covered_ms: whole_ms(report.covered),
            sub_window_ms: whole_ms(SUB_WINDOW),
            by: words.into_iter().filter(|(_, wanted)| *wanted).map(|(word, _)| word).collect(),
            causes: report.causes.iter().map(CauseJson::from).collect(),
            groups: report.groups.iter().map(GroupJson::from).collect(),
        }
    }
}

impl From<&Group> for GroupJson {
    fn from(group: &Group) -> Self {
        let peer = |peer: &Option<EngineId>| peer.as_ref().map_or(OTHER, |peer| peer.as_str()).to_owned();
        Self {
            dp_rank: group.dp_rank.map(|rank| rank.0),
            peer: group.peer.as_ref().map(peer),
            address: group.address.as_ref().map(ToString::to_string),
            stage: group.stage.unwrap_or("total"),
            count: group.figures.count,
            p50_us: group.figures.p50,
            p90_us: group.figures.p90,
            p99_us: group.figures.p99,
            max_us: group.figures.max,
        }
    }
}

impl From<&Cause> for CauseJson {
    fn from(cause: &Cause) -> Self {
        let (peer, dp_rank) = match &cause.subject {
            Subject::Peer(peer) => (Some(peer.as_str().to_owned()), None),
            Subject::Rank(rank) => (None, Some(rank.0)),
        };
        Self {
            stage: cause.stage,
            p50_us: cause.p50,
            others_p50_us: cause.others_p50,
            text: cause.text.clone(),
            peer,
            dp_rank,
            address: cause.address.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(window: &str, by: &str) -> Result<Query, String> {
        let query = LatencyQuery { window: Some(window.to_owned()), by: Some(by.to_owned()) };
        query.query().map_err(|problem| problem.code().to_owned())
    }

    #[test]
    fn any_subset_in_any_order_is_a_question_and_anything_else_is_refused() {
        let all = By { rank: true, peer: true, stage: true };
        assert_eq!(asked("60s", "stage,rank,peer").unwrap().by, all);
        assert_eq!(asked("5s", "").unwrap().by, By { rank: false, peer: false, stage: false });
        assert_eq!(asked("60s", "peer").unwrap().by, By { rank: false, peer: true, stage: false });
        for (window, by) in [
            ("60s", "rank,rank"),
            ("60s", "ranks"),
            ("60s", "rank,,peer"),
            ("0s", "rank"),
            ("1h", "rank"),
            ("soon", "rank"),
            ("-1s", "rank"),
        ] {
            assert_eq!(asked(window, by), Err("params_invalid".to_owned()), "{window} {by}");
        }
        let nothing = LatencyQuery { window: None, by: None }.query().unwrap();
        assert_eq!((nothing.window, nothing.by), (Duration::from_secs(60), all));
    }
}
