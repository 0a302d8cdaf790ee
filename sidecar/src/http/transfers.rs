//! `/v1/transfers`: start, look at, claim, end.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, StatusCode, header};
use kv::ids::{AttemptId, DpRank, TransferId};
use serde::{Deserialize, Serialize};
use telemetry::trace::Context;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};

use crate::http::Api;
use crate::http::input::{self, JsonBody, QueryArgs, Segment};
use crate::http::openapi::{answers, schemas};
use crate::http::trace_json::{self, TraceJson};
use crate::http::transfer_json::{LandedJson, StartBody, TransferJson, whole_ms};
use crate::latency::{Usual, why};
use crate::model::{Code, StartTransfer, TransferError, TransferFilter, TransferPhase, TransferSnapshot};
use crate::problem::Problem;

/// More than this many transfers are never listed at once.
const MAX_LISTED: usize = 1000;

/// Pulls one prefill's KV for one rank; answers when it has landed, or at once when the client prefers that
#[utoipa::path(
    post,
    path = "/v1/transfers",
    operation_id = "start_transfer",
    tag = "transfers",
    params(("Prefer" = Option<String>, Header, description = "`respond-async`: answer at once")),
    request_body = StartBody,
    responses(
        (status = 200, description = "It has landed", body = LandedJson),
        (status = 202, description = "It is under way", body = BegunJson, headers(
            ("Location" = String, description = "Where it can be looked at"),
            ("Preference-Applied" = String, description = "`respond-async`"),
        )),
        answers::Started,
    ),
)]
pub(super) async fn start(
    State(api): State<Api>,
    headers: HeaderMap,
    trace: Option<Extension<Context>>,
    JsonBody(body): JsonBody<StartBody>,
) -> Result<Response, Problem> {
    let start = body.into_start(Instant::now(), trace.map(|Extension(span)| span))?;
    if prefers_async(&headers) { begin(&api, start).await } else { transfer(&api, start).await }
}

/// A client that leaves while we wait for the landing cancels the transfer. The core's future lives on a task of its own and is told so;
/// it is not dropped with the connection.
async fn transfer(api: &Api, start: StartTransfer) -> Result<Response, Problem> {
    let client_left = CancellationToken::new();
    let connection = client_left.clone().drop_guard();
    let pod = api.pod().clone();
    let landing = async move {
        tokio::select! {
            landed = pod.transfer(start) => landed,
            () = client_left.cancelled() => Err(TransferError::Cancelled),
        }
    };
    let landed = api.settled(landing).await?.map_err(|error| Problem::from(&error))?;
    connection.disarm();
    Ok(Json(LandedJson::from(&landed)).into_response())
}

async fn begin(api: &Api, start: StartTransfer) -> Result<Response, Problem> {
    let pod = api.pod().clone();
    let id = api.settled(async move { pod.begin(start).await }).await?.map_err(|error| Problem::from(&error))?;
    let location = format!("/v1/transfers/{id}");
    let headers = [(header::LOCATION, location), (PREFERENCE_APPLIED, "respond-async".to_owned())];
    Ok((StatusCode::ACCEPTED, headers, Json(BegunJson { transfer_id: id.as_str().to_owned() })).into_response())
}

/// A transfer that nobody waits for.
#[derive(Debug, Serialize, ToSchema)]
struct BegunJson {
    transfer_id: String,
}

const PREFERENCE_APPLIED: http::HeaderName = http::HeaderName::from_static("preference-applied");

/// RFC 7240: preferences are a list, in any number of headers, and may have parameters.
fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
    let preferences = values.flat_map(|value| value.split(','));
    preferences
        .map(|one| one.split(';').next().unwrap_or_default().trim())
        .any(|one| one.eq_ignore_ascii_case("respond-async"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    #[param(schema_with = schemas::phase)]
    state: Option<String>,
    /// Only this rank's (global)
    #[param(maximum = 65535)]
    dp_rank: Option<u16>,
    #[param(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    attempt_id: Option<String>,
    /// Only as many, the slowest first, each with why it took so long; never more than 1000
    #[param(maximum = 4_294_967_295_i64)]
    slowest: Option<u32>,
    /// At most as many; never more than 1000
    #[param(maximum = 4_294_967_295_i64)]
    limit: Option<u32>,
    /// Each with why it took so long, as with `slowest`
    #[serde(default)]
    #[param(required = false)]
    why: bool,
}

impl ListQuery {
    fn filter(&self) -> Result<TransferFilter, Problem> {
        let state =
            self.state.as_deref().map(|word| TransferPhase::parse(word).ok_or_else(no_such_state)).transpose()?;
        let slowest = self.slowest.map(|slowest| at_most(Some(slowest)));
        let attempt = self.attempt_id.as_deref().map(|id| input::id("attempt_id", id)).transpose()?;
        let attempt = attempt.map(|id| AttemptId::new(id.to_owned()));
        Ok(TransferFilter { state, dp_rank: self.dp_rank.map(DpRank), attempt, slowest })
    }
}

fn at_most(count: Option<u32>) -> usize {
    count.and_then(|count| usize::try_from(count).ok()).map_or(MAX_LISTED, |count| count.min(MAX_LISTED))
}

fn no_such_state() -> Problem {
    let words: Vec<&str> = TransferPhase::ALL.into_iter().map(TransferPhase::as_str).collect();
    Problem::field("state", &format!("must be one of {}", words.join(", ")))
}

/// Some of the recent transfers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TransfersJson {
    transfers: Vec<TransferJson>,
}

/// Recent transfers, the latest first: a bounded ring
#[utoipa::path(
    get,
    path = "/v1/transfers",
    operation_id = "list_transfers",
    tag = "transfers",
    params(ListQuery),
    responses((status = 200, description = "At most 1000", body = TransfersJson), answers::Asked),
)]
pub(super) async fn list(
    State(api): State<Api>,
    QueryArgs(query): QueryArgs<ListQuery>,
) -> Result<Json<TransfersJson>, Problem> {
    let now = Instant::now();
    let snapshots = api.pod().list(&query.filter()?);
    let shown = snapshots.iter().take(at_most(query.limit));
    let transfers = if query.why || query.slowest.is_some() {
        let (usual, transport) = (usual(&api).await?, api.pod().transport().await);
        let reason = |snapshot| why(snapshot, &usual, transport.as_deref(), now);
        shown.map(|snapshot| TransferJson::new(snapshot, now).with_why(reason(snapshot))).collect()
    } else {
        shown.map(|snapshot| TransferJson::new(snapshot, now)).collect()
    };
    Ok(Json(TransfersJson { transfers }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Answer once it has landed or failed, or after this time; longer than a minute is a minute
    #[param(schema_with = schemas::time, example = "5s")]
    wait: Option<String>,
}

/// A transfer as it stands, or as it stands once it has settled
#[utoipa::path(
    get,
    path = "/v1/transfers/{id}",
    operation_id = "transfer",
    tag = "transfers",
    params(schemas::TransferIdPath, WaitQuery),
    responses((status = 200, description = "State, timeline and why it took so long", body = TransferJson), answers::One),
)]
pub(super) async fn one(
    State(api): State<Api>,
    segment: Segment,
    QueryArgs(query): QueryArgs<WaitQuery>,
) -> Result<Json<TransferJson>, Problem> {
    let id = segment.transfer()?;
    let wait = query.wait.as_deref().map(input::wait).transpose()?;
    let snapshot = match wait {
        None => api.pod().get(&id),
        Some(at_most) => tokio::select! {
            snapshot = api.pod().wait(&id, at_most) => snapshot,
            () = api.0.stop.cancelled() => api.pod().get(&id),
        },
    };
    let snapshot = snapshot.ok_or_else(|| unknown(&id))?;
    let (usual, transport) = (usual(&api).await?, api.pod().transport().await);
    let why = why(&snapshot, &usual, transport.as_deref(), Instant::now());
    Ok(Json(shown(&api, &snapshot).with_why(why)))
}

/// Until when the KV is kept.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClaimJson {
    /// From now
    collect_by_ms: u64,
}

/// The decode leg of a landed transfer is still open: its KV is kept
#[utoipa::path(
    post,
    path = "/v1/transfers/{id}/claim",
    operation_id = "claim_transfer",
    tag = "transfers",
    params(schemas::TransferIdPath),
    responses((status = 200, description = "Kept", body = ClaimJson), answers::Claimed),
)]
pub(super) async fn claim(State(api): State<Api>, segment: Segment) -> Result<Json<ClaimJson>, Problem> {
    let id = segment.transfer()?;
    let pod = api.pod().clone();
    let held = api.settled(async move { pod.claim(&id).await }).await?.map_err(|error| Problem::from(&error))?;
    Ok(Json(ClaimJson { collect_by_ms: whole_ms(held) }))
}

/// Cancels a running transfer, frees a landed one after the decode leg has ended; idempotent
#[utoipa::path(
    delete,
    path = "/v1/transfers/{id}",
    operation_id = "finish_transfer",
    tag = "transfers",
    params(schemas::TransferIdPath),
    responses((status = 200, description = "As it stands now", body = TransferJson), answers::Finished),
)]
pub(super) async fn finish(State(api): State<Api>, segment: Segment) -> Result<Json<TransferJson>, Problem> {
    let id = segment.transfer()?;
    let pod = api.pod().clone();
    let snapshot = api.settled(async move { pod.finish(&id).await }).await?.map_err(|error| Problem::from(&error))?;
    Ok(Json(TransferJson::new(&snapshot, Instant::now())))
}

/// Most that are ended with one request.
const MAX_FINISHED: usize = 256;

/// Transfers whose decode legs have ended.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct FinishedBody {
    #[schema(schema_with = schemas::transfer_ids)]
    transfer_ids: Vec<String>,
}

/// What became of them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FinishedJson {
    /// Ended now or before
    finished: usize,
    /// Not known, or no more
    unknown: usize,
}

/// Frees landed transfers after their decode legs have ended, many at once; idempotent
#[utoipa::path(
    post,
    path = "/v1/finished-transfers",
    operation_id = "finish_transfers",
    tag = "transfers",
    request_body = FinishedBody,
    responses((status = 200, description = "How many of them are known", body = FinishedJson), answers::FinishedAll),
)]
pub(super) async fn finish_all(
    State(api): State<Api>,
    JsonBody(body): JsonBody<FinishedBody>,
) -> Result<Json<FinishedJson>, Problem> {
    if body.transfer_ids.len() > MAX_FINISHED {
        return Err(Problem::field("transfer_ids", "must be at most 256"));
    }
    let id = |text: &String| input::id("transfer_ids", text).map(|id| TransferId::new(id.to_owned()));
    let ids: Vec<TransferId> = body.transfer_ids.iter().map(id).collect::<Result<_, _>>()?;
    let pod = api.pod().clone();
    let finished = api.settled(async move {
        let mut told = FinishedJson { finished: 0, unknown: 0 };
        for id in &ids {
            match pod.finish(id).await {
                Ok(_) => told.finished += 1,
                Err(TransferError::NotFound(_)) => told.unknown += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(told)
    });
    finished.await?.map(Json).map_err(|error| Problem::from(&error))
}

/// Its timeline as Chrome's trace events, for Perfetto
#[utoipa::path(
    get,
    path = "/v1/transfers/{id}/trace",
    operation_id = "trace_transfer",
    tag = "transfers",
    params(schemas::TransferIdPath),
    responses((status = 200, description = "A trace file", body = TraceJson), answers::One),
)]
pub(super) async fn trace(State(api): State<Api>, segment: Segment) -> Result<Json<TraceJson>, Problem> {
    let id = segment.transfer()?;
    let snapshot = api.pod().get(&id).ok_or_else(|| unknown(&id))?;
    Ok(Json(trace_json::trace(&snapshot, api.pod().latency().epoch(), Instant::now())))
}

/// Adding up histograms may take milliseconds: not on a thread that serves requests.
async fn usual(api: &Api) -> Result<Usual, Problem> {
    let latency = api.pod().latency();
    tokio::task::spawn_blocking(move || latency.usual()).await.map_err(|_broken| Problem::internal())
}

fn shown(api: &Api, snapshot: &TransferSnapshot) -> TransferJson {
    let json = TransferJson::new(snapshot, Instant::now());
    let landed = (snapshot.state == TransferPhase::Landed).then(|| api.pod().landed(&snapshot.transfer)).flatten();
    match landed {
        Some(landed) => json.with_receipt(&landed),
        None => json,
    }
}

fn unknown(id: &TransferId) -> Problem {
    Problem::new(Code::NotFound, TransferError::NotFound(id.clone()).to_string())
}
