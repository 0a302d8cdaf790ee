//! Who may ask what: clients with their keys, operators with theirs. Stands before the routes of both listeners.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use secrets::Tokens;

use crate::admission::Caller;
use crate::config::RouterConfig;
use crate::error::ApiError;
use crate::keys::{Keys, MOST_URGENT, presented};

/// How urgent a request is, from 0 to 9; at most what its key may claim.
const PRIORITY: HeaderName = HeaderName::from_static("x-kvgate-priority");

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Clients,
    Operators,
}

/// Set on requests whose sender may see engines' addresses and change targets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operator;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Of this process: alive, ready, which version.
    Health,
    /// Figures, without addresses.
    Figures,
    /// Targets and requests, with addresses.
    Inside,
    /// Anything else: work for engines.
    Work,
}

/// The guard of one door.
#[derive(Debug)]
pub(crate) struct Guard {
    door: Door,
    keys: Option<Arc<Keys>>,
    operators: Option<Arc<Tokens>>,
    /// Nobody else's machine can reach it, or it was left open on purpose.
    trusted: bool,
    engines: Option<Arc<Tokens>>,
}

impl Guard {
    pub(crate) fn new(config: &RouterConfig, door: Door) -> Self {
        let operators = config.listen.admin_tokens.clone();
        let keys = config.limits.keys.clone();
        let trusted = match door {
            Door::Clients => operators.is_none() && keys.is_none() && config.listen.is_loopback(),
            Door::Operators => operators.is_none(),
        };
        Self { door, keys, operators, trusted, engines: config.targets.engine_tokens.clone() }
    }

    /// Lets a request through, with what is known of its sender, or not.
    pub(crate) fn admit(&self, request: &mut Request<Body>) -> Result<(), ApiError> {
        let asked = asked(request.uri().path());
        if asked == Asked::Work {
            return self.admit_work(request);
        }
        if self.is_operator(request) {
            request.extensions_mut().insert(Operator);
            return Ok(());
        }
        let open = match asked {
            Asked::Health => true,
            Asked::Figures => self.door == Door::Operators || (self.operators.is_none() && self.keys.is_none()),
            Asked::Inside | Asked::Work => false,
        };
        if open {
            Ok(())
        } else {
            Err(unauthorized("this path is for operators: ask with the admin token, or on the admin port"))
        }
    }

    fn admit_work(&self, request: &mut Request<Body>) -> Result<(), ApiError> {
        if self.door == Door::Operators {
            return Err(ApiError::client(
                StatusCode::NOT_FOUND,
                "not_found",
                "the admin port takes no work for engines",
            ));
        }
        let headers = request.headers();
        let asked = headers.get(PRIORITY).map(priority).transpose()?;
        let key = match &self.keys {
            None => None,
            Some(keys) => Some(keys.find(headers).ok_or_else(|| unauthorized("a valid API key is needed"))?),
        };
        let most = key.as_ref().map_or(MOST_URGENT, |key| key.priority());
        let usual = key.as_ref().map_or(0, |key| key.priority());
        if key.is_some() || asked.is_some() {
            let caller = Caller { priority: asked.unwrap_or(usual).min(most), key };
            request.extensions_mut().insert(caller);
        }
        if let Some(engines) = &self.engines {
            let headers = request.headers_mut();
            headers.insert(header::AUTHORIZATION, engines.header());
            headers.remove("x-api-key");
        }
        Ok(())
    }

    fn is_operator(&self, request: &Request<Body>) -> bool {
        if self.trusted {
            return true;
        }
        let Some(secret) = presented(request.headers()) else { return false };
        self.operators.as_ref().is_some_and(|tokens| tokens.has(secret))
            || self.keys.as_ref().and_then(|keys| keys.find(request.headers())).is_some_and(|key| key.is_admin())
    }
}

fn asked(path: &str) -> Asked {
    match path {
        "/health" | "/livez" | "/readyz" | "/version" => Asked::Health,
        "/metrics" => Asked::Figures,
        path if below(path, "/v1/workers")
            || below(path, "/v1/requests")
            || below(path, "/v1/log-level")
            || below(path, "/debug") =>
        {
            Asked::Inside
        }
        _ => Asked::Work,
    }
}

fn below(path: &str, root: &str) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn priority(value: &HeaderValue) -> Result<u8, ApiError> {
    let number = value.to_str().ok().and_then(|text| text.trim().parse::<u8>().ok());
    number.filter(|number| *number <= MOST_URGENT).ok_or_else(|| {
        let message = "x-kvgate-priority is a number from 0 to 9, 9 being the most urgent";
        ApiError::client(StatusCode::BAD_REQUEST, "priority_invalid", message)
    })
}

fn unauthorized(message: &'static str) -> ApiError {
    ApiError::client(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}
