//! `/v1/latency`: percentiles per rank, peer and stage, and what stands out.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::parse;
use crate::http::transfer_json::whole_ms;
use crate::http::{Api, input::QueryArgs};
use crate::latency::causes::{Cause, Subject};
use crate::latency::{By, Group, MAX_WINDOW, Query, Report, SUB_WINDOW, micros};
use crate::problem::Problem;

/// What is told when nothing else is asked for.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);

/// How a peer is called that is not kept apart any more.
const OTHER: &str = "other";

#[derive(Debug, Deserialize)]
pub(super) struct LatencyQuery {
    window: Option<String>,
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

/// `GET /v1/latency?window=60s&by=rank,peer,stage`.
pub(super) async fn report(
    State(api): State<Api>,
    QueryArgs(query): QueryArgs<LatencyQuery>,
) -> Result<Json<Value>, Problem> {
    let query = query.query()?;
    let latency = api.pod().latency();
    let reporting = tokio::task::spawn_blocking(move || latency.report(&query));
    let report = reporting.await.map_err(|_broken| Problem::internal())?;
    Ok(Json(shown(&query, &report)))
}

fn shown(query: &Query, report: &Report) -> Value {
    let words = [("rank", query.by.rank), ("peer", query.by.peer), ("stage", query.by.stage)];
    let by: Vec<&str> = words.into_iter().filter(|(_, wanted)| *wanted).map(|(word, _)| word).collect();
    json!({
        "window_ms": whole_ms(query.window),
        "covered_ms": whole_ms(report.covered),
        "sub_window_ms": whole_ms(SUB_WINDOW),
        "by": by,
        "causes": report.causes.iter().map(cause).collect::<Vec<_>>(),
        "groups": report.groups.iter().map(group).collect::<Vec<_>>(),
    })
}

fn group(group: &Group) -> Value {
    let mut json = Map::new();
    let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
    if let Some(rank) = group.dp_rank {
        put("dp_rank", rank.0.into());
    }
    if let Some(peer) = &group.peer {
        put("peer", peer.as_ref().map_or(OTHER, |peer| peer.as_str()).into());
    }
    if let Some(address) = &group.address {
        put("address", address.to_string().into());
    }
    put("stage", group.stage.unwrap_or("total").into());
    let figures = &group.figures;
    put("count", figures.count.into());
    for (name, us) in
        [("p50_us", figures.p50), ("p90_us", figures.p90), ("p99_us", figures.p99), ("max_us", figures.max)]
    {
        put(name, us.into());
    }
    Value::Object(json)
}

fn cause(cause: &Cause) -> Value {
    let (kind, subject) = match &cause.subject {
        Subject::Peer(peer) => ("peer", Value::from(peer.as_str())),
        Subject::Rank(rank) => ("dp_rank", Value::from(rank.0)),
    };
    let mut json = json!({
        "stage": cause.stage,
        "p50_us": cause.p50,
        "others_p50_us": cause.others_p50,
        "text": cause.text,
    });
    if let Some(json) = json.as_object_mut() {
        json.insert(kind.to_owned(), subject);
        json.extend(cause.address.iter().map(|address| ("address".to_owned(), address.to_string().into())));
    }
    json
}

/// Microseconds of an optional time.
pub(super) fn micros_or_null(time: Option<Duration>) -> Value {
    time.map_or(Value::Null, |time| micros(time).into())
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
