//! What clients send: bodies, queries, path segments. Each way to be wrong has its problem document; nothing here panics on any input.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::request::Parts;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kv::ids::{DpRank, TransferId};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::config::parse;
use crate::http::Api;
use crate::model::Code;
use crate::problem::Problem;

/// Bytes of a request body. The block list of a million tokens at 16 tokens per block takes about half a megabyte.
pub const MAX_BODY: usize = 4 << 20;

/// How long a body may take to arrive.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Ids of clients that are longer name nothing. Bytes.
const MAX_ID: usize = 256;

/// The longest that a transfer may be asked to take, or a lease may be said to last.
const MAX_MILLISECONDS: u64 = 24 * 3600 * 1000;

/// A JSON object of type `T`.
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::unsupported_media_type());
        }
        let read = read(request.into_body(), &api.0.bodies);
        let (bytes, _room) = timeout(BODY_DEADLINE, read).await.map_err(|_| Problem::request_timeout())??;
        // serde would take a list for the members in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(Problem::new(Code::ParamsInvalid, "the body cannot be used: it is no JSON object"));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            // serde's words name the field, the type that was found, the line and the column.
            Problem::new(Code::ParamsInvalid, format!("the body cannot be used: {error}"))
        })
    }
}

/// Room for all bodies that are being read or understood, in bytes: for sixteen of the largest, or for as many of a usual transfer's (2 KB) as
/// there may be connections.
#[derive(Clone, Debug)]
pub(super) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(16 * MAX_BODY)))
    }
}

/// A body and its room, which is taken piece by piece: a length that is only announced takes none.
async fn read(body: Body, bodies: &Bodies) -> Result<(Vec<u8>, Vec<OwnedSemaphorePermit>), Problem> {
    let (mut bytes, mut room) = (Vec::new(), Vec::new());
    let mut body = Limited::new(body, MAX_BODY);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|error| broken_body(error.as_ref()))?.into_data() else { continue };
        let units = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        room.push(Arc::clone(&bodies.0).try_acquire_many_owned(units).map_err(|_| Problem::too_many_bodies())?);
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, room))
}

fn broken_body(error: &(dyn std::error::Error + 'static)) -> Problem {
    if error.is::<LengthLimitError>() {
        Problem::new(Code::TooLarge, format!("the body may have at most {MAX_BODY} bytes"))
    } else {
        Problem::new(Code::ParamsInvalid, "the body ended before it was complete")
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// A query string of type `T`; names that `T` does not know are ignored.
#[derive(Debug)]
pub(super) struct QueryArgs<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for QueryArgs<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(args)) => Ok(Self(args)),
            Err(rejection) => Err(Problem::new(Code::ParamsInvalid, format!("the query cannot be used: {rejection}"))),
        }
    }
}

/// The one variable segment of a path, percent-decoded.
#[derive(Debug)]
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(segment)) => Ok(Self(segment)),
            Err(rejection) => Err(Problem::new(Code::ParamsInvalid, format!("the path cannot be used: {rejection}"))),
        }
    }
}

impl Segment {
    /// A transfer's id; whether it exists is for the core to say.
    pub(super) fn transfer(self) -> Result<TransferId, Problem> {
        id("transfer id", &self.0).map(|id| TransferId::new(id.to_owned()))
    }

    /// A DP rank in the global numbering.
    pub(super) fn rank(&self) -> Result<DpRank, Problem> {
        let rank = self.0.parse().map_err(|_| Problem::field("rank", "a DP rank is a number from 0 to 65535"))?;
        Ok(DpRank(rank))
    }
}

/// An id: visible ASCII, not empty, not long.
pub(super) fn id<'a>(field: &str, text: &'a str) -> Result<&'a str, Problem> {
    if text.is_empty() || text.len() > MAX_ID || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::field(field, "must be 1 to 256 visible ASCII characters"));
    }
    Ok(text)
}

/// A time that was sent as milliseconds.
pub(super) fn milliseconds(field: &str, value: u64) -> Result<Duration, Problem> {
    if value > MAX_MILLISECONDS {
        return Err(Problem::field(field, "must be at most 86400000 (a day)"));
    }
    Ok(Duration::from_millis(value))
}

/// A time that must pass: not zero.
pub(super) fn some_milliseconds(field: &str, value: u64) -> Result<Duration, Problem> {
    if value == 0 {
        return Err(Problem::field(field, "must be at least 1"));
    }
    milliseconds(field, value)
}

/// How long a client wants to wait, as in `5s`; longer than a minute is cut to a minute.
pub(super) fn wait(text: &str) -> Result<Duration, Problem> {
    let wait = parse::duration(text).map_err(|error| Problem::field("wait", &error.to_string()))?;
    Ok(wait.min(Duration::from_secs(60)))
}

/// vLLM's parameters, strictly.
pub(super) fn params(json: &RawValue) -> Result<vllm_wire::params::KvTransferParams, Problem> {
    vllm_wire::params::KvTransferParams::read(json.get())
        .map_err(|error| Problem::field("kv_transfer_params", &crate::problem::with_causes(&error)))
}

/// How much is to be compared with the source.
pub(super) fn verify(text: &str) -> Result<kv::digest::Verify, Problem> {
    parse::verify(text).map_err(|error| Problem::field("verify", &error.to_string()))
}

/// Where another pod's sidecar is asked.
pub(super) fn sidecar(text: &str) -> Result<http::Uri, Problem> {
    let uri = text.parse().ok().filter(super::sources::is_sidecar);
    uri.ok_or_else(|| {
        Problem::field("source_sidecar", "must be http://HOST:PORT or https://HOST:PORT of the prefill pod's sidecar")
    })
}
