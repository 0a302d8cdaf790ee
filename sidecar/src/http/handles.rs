//! `/v1/handles`: block handles alive on this pod's ranks.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use kv::ids::{DpRank, EngineRequestId};
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::http::Api;
use crate::http::handles_json::{HandleJson, HandlesJson, Page};
use crate::http::input::{self, JsonBody, QueryArgs, Segment};
use crate::http::openapi::{answers, schemas};
use crate::model::{HandleError, LetGo, ReportHandle};
use crate::problem::Problem;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RankQuery {
    /// Only this rank's (global); none, if it is another pod's
    #[param(maximum = 65535)]
    dp_rank: Option<u16>,
}

/// Block handles alive per rank, page by page: on P pinned in the engine, on D in staging
#[utoipa::path(
    get,
    path = "/v1/handles",
    operation_id = "list_handles",
    tag = "handles",
    params(RankQuery, Page),
    responses((status = 200, description = "A page of them", body = HandlesJson), answers::Asked),
)]
pub(super) async fn list(
    State(api): State<Api>,
    QueryArgs(of): QueryArgs<RankQuery>,
    QueryArgs(page): QueryArgs<Page>,
) -> Json<HandlesJson> {
    Json(held(&api, of.dp_rank, &page).await)
}

/// A page of the handles of one rank or of all.
pub(super) async fn held(api: &Api, dp_rank: Option<u16>, page: &Page) -> HandlesJson {
    let mut ranks = api.pod().handles().await;
    ranks.retain(|rank| dp_rank.is_none_or(|wanted| rank.dp_rank.0 == wanted));
    let owned: Vec<u16> = api.pod().ranks().borrow().iter().map(|rank| rank.dp_rank.0).collect();
    let asked = owned.into_iter().filter(|rank| dp_rank.is_none_or(|wanted| *rank == wanted));
    let unanswered: Vec<u16> = asked.filter(|rank| ranks.iter().all(|told| told.dp_rank.0 != *rank)).collect();
    HandlesJson::new(&ranks, unanswered, page)
}

/// A finished prefill. The two ids stand in the parameters as well and must be the same there.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ReportBody {
    #[schema(maximum = 65535)]
    dp_rank: u16,
    #[schema(min_length = 1, max_length = 512)]
    remote_request_id: String,
    #[schema(min_length = 1, max_length = 512)]
    remote_engine_id: String,
    #[schema(value_type = schemas::KvTransferParamsJson)]
    kv_transfer_params: Box<RawValue>,
    /// The engine's lease, when it is not --kv-lease
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86_400_000)]
    lease_ms: Option<u64>,
    /// Time since the prefill was answered
    #[schema(maximum = 86_400_000)]
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

/// The router reports a finished prefill (P)
#[utoipa::path(
    post,
    path = "/v1/handles",
    operation_id = "report_handle",
    tag = "handles",
    request_body = ReportBody,
    responses((status = 200, description = "The handle as it is kept", body = HandleJson), answers::Reported),
)]
pub(super) async fn report(
    State(api): State<Api>,
    JsonBody(body): JsonBody<ReportBody>,
) -> Result<Json<HandleJson>, Problem> {
    let report = body.into_report()?;
    let pod = api.pod().clone();
    let handle = api.settled(async move { pod.report_handle(report).await }).await?;
    Ok(Json(HandleJson::new(&handle.map_err(refused)?, &Page::default())))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReleaseQuery {
    /// The rank that prefilled (global)
    #[param(maximum = 65535)]
    dp_rank: u16,
    /// `abandoned` (the default): nobody will read these blocks, the engine is told. `read`: whoever read them has told it
    #[serde(default)]
    #[param(required = false, inline)]
    reason: Reason,
}

/// Why a handle is let go.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Reason {
    #[default]
    Abandoned,
    Read,
}

/// Lets a prefill's blocks go (P); idempotent, the engine is told once at most
#[utoipa::path(
    delete,
    path = "/v1/handles/{remote_request_id}",
    operation_id = "release_handle",
    tag = "handles",
    params(schemas::RequestIdPath, ReleaseQuery),
    responses((status = 204, description = "Let go"), answers::Released),
)]
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
