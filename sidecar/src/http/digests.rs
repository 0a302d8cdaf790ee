//! `/v1/digests`: digests of blocks of this pod's engines (prefill role).

use axum::Json;
use axum::extract::State;
use tokio::time::Instant;

use crate::digest::DigestError;
use crate::http::Api;
use crate::http::digests_json::{AskBody, DigestsJson};
use crate::http::input::JsonBody;
use crate::http::openapi::answers;
use crate::problem::{Problem, with_causes};

/// Reads blocks of this pod's engine over NIXL and answers the XXH64 of each, region by region (prefill role)
///
/// What is digested is in docs/verification.md. A client that leaves ends the work.
#[utoipa::path(
    post,
    path = "/v1/digests",
    operation_id = "take_digests",
    tag = "transfers",
    request_body = AskBody,
    responses((status = 200, description = "Taken", body = DigestsJson), answers::Digested),
)]
pub(super) async fn take(
    State(api): State<Api>,
    JsonBody(body): JsonBody<AskBody>,
) -> Result<Json<DigestsJson>, Problem> {
    let ask = body.into_ask(Instant::now())?;
    let layout = api.pod().layout_of(&ask.engine);
    let taken = api.pod().digests(ask.clone()).await.map_err(refused)?;
    Ok(Json(DigestsJson::new(&ask, layout.as_deref(), &taken)))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn refused(error: DigestError) -> Problem {
    Problem::new(error.code(), with_causes(&error))
}
