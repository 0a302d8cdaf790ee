//! `/v1/handles`: block handles alive on this pod's ranks.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use kv::ids::{DpRank, EngineRequestId};
use serde::Deserialize;
use serde_json::Value;

use crate::http::Api;
use crate::http::handles_json::{self, HandleJson, Page};
use crate::http::input::{self, JsonBody, QueryArgs, Segment};
use crate::model::{HandleError, LetGo, ReportHandle};
use crate::problem::Problem;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    dp_rank: Option<u16>,
    offset: Option<usize>,
    limit: Option<usize>,
    block_offset: Option<usize>,
    block_limit: Option<usize>,
}

impl ListQuery {
    fn page(&self) -> Page {
        let Self { dp_rank: _, offset, limit, block_offset, block_limit } = *self;
        Page { offset, limit, block_offset, block_limit }
    }
}

/// `GET /v1/handles?dp_rank=&offset=&limit=&block_offset=&block_limit=`.
pub(super) async fn list(State(api): State<Api>, QueryArgs(query): QueryArgs<ListQuery>) -> Json<Value> {
    Json(held(&api, query.dp_rank, &query.page()).await)
}

/// A page of the handles of one rank or of all.
pub(super) async fn held(api: &Api, dp_rank: Option<u16>, page: &Page) -> Value {
    let mut ranks = api.pod().handles().await;
    ranks.retain(|rank| dp_rank.is_none_or(|wanted| rank.dp_rank.0 == wanted));
    let owned: Vec<u16> = api.pod().ranks().borrow().iter().map(|rank| rank.dp_rank.0).collect();
    let asked = owned.into_iter().filter(|rank| dp_rank.is_none_or(|wanted| *rank == wanted));
    let unanswered: Vec<u16> = asked.filter(|rank| ranks.iter().all(|told| told.dp_rank.0 != *rank)).collect();
    handles_json::page(&ranks, &unanswered, page)
}

/// `POST /v1/handles`. The two ids stand in the parameters as well; a client that sends both must mean the same.
#[derive(Debug, Deserialize)]
pub(super) struct ReportBody {
    dp_rank: u16,
    remote_request_id: String,
    remote_engine_id: String,
    kv_transfer_params: Value,
    #[serde(default)]
    lease_ms: Option<u64>,
    age_ms: u64,
}

impl ReportBody {
    fn into_report(self) -> Result<ReportHandle, Problem> {
        let params = input::params(&self.kv_transfer_params)?;
        if params.remote_request_id.as_str() != self.remote_request_id {
            return Err(Problem::field("remote_request_id", "differs from the one in kv_transfer_params"));
        }
        if params.remote_engine_id.as_str() != self.remote_engine_id {
            return Err(Problem::field("remote_engine_id", "differs from the one in kv_transfer_params"));
        }
        Ok(ReportHandle {
            dp_rank: DpRank(self.dp_rank),
            params,
            lease: self.lease_ms.map(|lease| input::some_milliseconds("lease_ms", lease)).transpose()?,
            age: input::milliseconds("age_ms", self.age_ms)?,
        })
    }
}

/// The router reports a finished prefill.
pub(super) async fn report(
    State(api): State<Api>,
    JsonBody(body): JsonBody<ReportBody>,
) -> Result<Json<HandleJson>, Problem> {
    let report = body.into_report()?;
    let pod = api.pod().clone();
    let handle = api.settled(async move { pod.report_handle(report).await }).await?;
    Ok(Json(HandleJson::new(&handle.map_err(refused)?, &Page::default())))
}

#[derive(Debug, Deserialize)]
pub(super) struct ReleaseQuery {
    dp_rank: u16,
    #[serde(default)]
    reason: Reason,
}

/// `?reason=`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reason {
    #[default]
    Abandoned,
    Read,
}

/// `DELETE /v1/handles/{remote_request_id}?dp_rank=&reason=`: nobody will read these blocks (`abandoned`, the default: the engine is told),
/// or they have been read (`read`: whoever read them has told it).
pub(super) async fn release(
    State(api): State<Api>,
    segment: Segment,
    QueryArgs(query): QueryArgs<ReleaseQuery>,
) -> Result<StatusCode, Problem> {
    let request = EngineRequestId::new(input::id("remote_request_id", &segment.0)?.to_owned());
    let why = match query.reason {
        Reason::Abandoned => LetGo::Abandoned,
        Reason::Read => LetGo::Read,
    };
    let pod = api.pod().clone();
    let released = api.settled(async move { pod.release_handle(DpRank(query.dp_rank), &request, why).await }).await?;
    released.map(|()| StatusCode::NO_CONTENT).map_err(refused)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn refused(error: HandleError) -> Problem {
    Problem::from(&error)
}
