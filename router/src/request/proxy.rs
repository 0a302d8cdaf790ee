//! Requests that are no completions: passed on to one decode engine as they are, never split.
//!
//! Two things are looked at nevertheless: the path, so that no client reaches an engine's administration ([`paths`]), and a JSON
//! body, so that no client hands transfer parameters to an engine on a path that takes them.

mod paths;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use tracing::warn;
use vllm_wire::body::{Pieces, without_params};

use crate::admission::{Caller, Running};
use crate::choice::{Ask, Avoid, Terms, Wish};
use crate::config::paths::UnknownPaths;
use crate::engine::Proxied;
use crate::error::ApiError;
use crate::headers::{Path, toward_client};
use crate::metrics::Ended;
use crate::pod_local::{Prefillers, strip};
use crate::relay::Held;
use crate::request::reply::{Begun, Client};
use crate::request::whole::leg_failed;
use crate::request::{LONG_BODY, bad_body, cut, in_time, not_ready, read_body};
use crate::router::Shared;
use crate::spans::RequestTrace;
use crate::targets::{Fault, Occupied, Side};
use crate::trail::{Leg, Trail};
use paths::{Verdict, judge};

/// Why such a request is not split, for headers and records.
const BECAUSE: &str = "proxied_path";
/// What records call the paths of these requests; the paths themselves are the clients' words.
const ENDPOINT: &str = "proxied";

/// Passes one request on.
///
/// # Cancel safety
/// As [`crate::request::serve`].
pub(crate) async fn serve(shared: Arc<Shared>, request: Request<Body>) -> Response<Body> {
    let id = shared.ids.next();
    let client = Client::of(&request, &id);
    let mut trail = Trail::new(id, client.label(), ENDPOINT);
    trail.trace = RequestTrace::of(shared.metrics.spans(), request.headers());
    let mut ended = shared.metrics.begin(trail);
    ended.trail.path = Path::Local;
    ended.trail.local_because = Some(BECAUSE);
    let arrived = ended.trail.arrived;
    match in_time(&shared, arrived, answer(&shared, request, &mut ended)).await {
        Ok((answer, (running, seat))) => {
            let (head, body) = answer.into_parts();
            let mut headers = toward_client(head.headers);
            without_address(&mut headers);
            let held = Held::unread(body);
            client.begun(&shared, ended, Begun { status: head.status, headers, held, running, seat, claimed: None })
        }
        Err(error) => client.failed(&shared, ended, &error),
    }
}

type Answered = (Response<Body>, (Running, Occupied));

async fn answer(shared: &Shared, request: Request<Body>, ended: &mut Ended) -> Result<Answered, ApiError> {
    check(shared, &request)?;
    let place = shared.admission.enter(request.extensions().get().unwrap_or(&Caller::default()))?;
    shared.retries.request();
    let (mut head, body) = request.into_parts();
    if shared.gateway.is_some() {
        strip(&mut head.headers);
    }
    ended.trail.begin(Leg::Body);
    let (body, _reserved) = read_body(shared, body).await?;
    ended.trail.end(Leg::Body);
    let body = if is_opaque(&head.headers) { body.into() } else { inspected(shared, body).await? };
    ended.trail.begin(Leg::Queue);
    let running = tokio::select! {
        running = shared.admission.start(place) => running?,
        () = shared.cut.cancelled() => return Err(cut()),
    };
    ended.started();
    let (method, headers) = (head.method, head.headers);
    let sent = send(shared, &method, &head.uri, &headers, &body, &mut ended.trail);
    let (response, seat) = tokio::select! {
        sent = sent => sent?,
        () = shared.cut.cancelled() => return Err(cut()),
    };
    Ok((response, (running, seat)))
}

/// Sends it to a decode engine; to another one as long as the engine has seen nothing of it.
async fn send(
    shared: &Shared,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &Pieces,
    trail: &mut Trail,
) -> Result<(Response<Body>, Occupied), ApiError> {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut avoid = Avoid::default();
    let asks = Ask::of_other_path(&shared.policies, headers, body.length());
    loop {
        let by = Some((&*shared.policies, &asks));
        let (pairing, wish) = (shared.config.choice.pairing, Wish::default());
        let terms = Terms { pairing, wish, prefillers: &Prefillers::Any, avoid: &avoid, by };
        let Some(target) = terms.alone(&shared.board) else {
            return Err(not_ready(&shared.board, &[Side::Decode], &Prefillers::Any));
        };
        let attempt = trail.next_attempt();
        let id = format!("{}-{attempt}", trail.id);
        trail.decode_on(&target);
        trail.begin(Leg::Decode);
        let seat = target.occupy();
        let trace = trail.attempt_trace();
        let ask = Proxied { method, path, headers, id: &id, trace, body: body.clone() };
        let error = match shared.engines.proxied(&target, ask).await {
            Ok(response) => {
                match response.status() {
                    StatusCode::NOT_IMPLEMENTED | StatusCode::SERVICE_UNAVAILABLE => {}
                    status if status.is_server_error() => target.failed(Fault::Failed),
                    _ => target.worked(),
                }
                trail.end(Leg::Decode);
                return Ok((response, seat));
            }
            Err(error) => error,
        };
        warn!(decode = %target.id(), error = &error as &dyn std::error::Error, "a proxied request fails");
        if let Some(fault) = error.fault() {
            target.failed(fault);
        }
        if !error.never_sent() || trail.attempts >= shared.config.failure.max_attempts {
            return Err(leg_failed("decode", &error));
        }
        avoid.unlucky(&target);
    }
}

fn check(shared: &Shared, request: &Request<Body>) -> Result<(), ApiError> {
    let refuse = |status, code, words: &str| Err(ApiError::client(status, code, words));
    let method = request.method();
    if method == Method::CONNECT || method == Method::TRACE {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the router does not take this method");
    }
    let not_found = || refuse(StatusCode::NOT_FOUND, "not_found", "there is no such path");
    match judge(request.uri().path()) {
        None => return not_found(),
        Some(Verdict::Closed) => {
            let words = "the path administers an engine; the router passes none of those on";
            return refuse(StatusCode::FORBIDDEN, "path_forbidden", words);
        }
        Some(Verdict::Unknown) if shared.config.paths.proxy_unknown == UnknownPaths::Off => return not_found(),
        Some(Verdict::Known | Verdict::Unknown) => {}
    }
    if is_upgrade(request.headers()) {
        let words = "the router passes no WebSocket or other upgraded connection on";
        return refuse(StatusCode::NOT_IMPLEMENTED, "upgrade_unsupported", words);
    }
    Ok(())
}

/// A wish to speak another protocol. One for HTTP/2 may be passed over (RFC 9110 §7.8), and some clients always send it.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let wishes = headers.get_all(header::UPGRADE).into_iter();
    wishes.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|wish| {
        let wish = wish.trim();
        !wish.is_empty() && !wish.eq_ignore_ascii_case("h2c")
    })
}

/// Whether no engine reads JSON from a body of this type. Without a type, or with two, some might.
fn is_opaque(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(header::CONTENT_TYPE).into_iter();
    let (Some(Ok(one)), None) = (types.next().map(HeaderValue::to_str), types.next()) else { return false };
    let media = one.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let families = ["multipart/", "audio/", "image/", "video/"];
    families.iter().any(|family| media.starts_with(family))
        || matches!(&*media, "application/octet-stream" | "application/x-www-form-urlencoded")
}

async fn inspected(shared: &Shared, body: Bytes) -> Result<Pieces, ApiError> {
    if body.is_empty() {
        return Ok(Pieces::default());
    }
    let read = if body.len() < LONG_BODY {
        without_params(&body)
    } else {
        shared.tasks.spawn_blocking(move || without_params(&body)).await.map_err(|_| cut())?
    };
    read.map_err(|error| bad_body(&error))
}

/// An engine that redirects names itself by the address that the router called it by.
fn without_address(headers: &mut HeaderMap) {
    let Some(location) = headers.get(header::LOCATION) else { return };
    let uri: Option<Uri> = location.to_str().ok().and_then(|text| text.parse().ok());
    let Some(uri) = uri.filter(|uri| uri.authority().is_some()) else { return };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    match HeaderValue::from_str(path) {
        Ok(path) => drop(headers.insert(header::LOCATION, path)),
        Err(_) => drop(headers.remove(header::LOCATION)),
    }
}
