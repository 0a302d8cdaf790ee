//! Which headers go on: the client's to the engines, the engine's to the client, minus what belongs to one hop or to us.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use vllm_wire::headers;

use crate::trail::{Leg, Trail};

/// Which DP rank of a pod is asked.
pub(crate) const DP_RANK: HeaderName = HeaderName::from_static(headers::DP_RANK);
/// What a request is called.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static(headers::REQUEST_ID);
/// A client's wish for P's rank.
pub(crate) const PREFILL_RANK: &str = "x-kvgate-prefill-rank";
/// All headers of this prefix are the router's own.
const OWN: &str = "x-kvgate-";
/// Headers that a leg adds at most: type, rank, id, trace, host.
const ADDED: usize = 5;

/// The client's headers, for an engine, with room for those of a leg.
pub(crate) fn toward_engine(client: &HeaderMap) -> HeaderMap {
    let named = named(client);
    let mut kept = HeaderMap::with_capacity(client.len() + ADDED);
    for (name, value) in client {
        if is_for_others(name, &named) && !is_per_leg(name.as_str()) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// An engine's headers, for the client: mostly all of them, as they are.
pub(crate) fn toward_client(engine: HeaderMap) -> HeaderMap {
    let named = named(&engine);
    let stays = |name: &HeaderName| is_for_others(name, &named) && name != REQUEST_ID;
    if engine.keys().all(stays) {
        return engine;
    }
    engine.iter().filter(|(name, _)| stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The headers that `connection` names.
fn named(headers: &HeaderMap) -> Vec<String> {
    let connection = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    connection.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

/// Whether a header belongs neither to one hop nor to the router.
fn is_for_others(name: &HeaderName, named: &[String]) -> bool {
    let name = name.as_str();
    let hop = matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    );
    !hop && !name.starts_with(OWN) && !named.iter().any(|named| named == name)
}

/// Whether a header is made anew for each leg. `accept-encoding`: the router reads P's answer and D's first event.
fn is_per_leg(name: &str) -> bool {
    matches!(name, "host" | "content-length" | "expect" | "accept-encoding" | headers::DP_RANK | headers::REQUEST_ID)
}

/// How a request was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Path {
    /// Prefill, transfer, decode.
    Pd,
    /// Prefill and decode without a receipt between them (`--gate direct`).
    Direct,
    /// Whole on one decode engine, because it cannot be split.
    Local,
    /// Whole on one decode engine, because splitting it failed.
    Fallback,
    /// Not by an engine.
    None,
}

impl Path {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Pd, Self::Direct, Self::Local, Self::Fallback, Self::None];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pd => "pd",
            Self::Direct => "direct",
            Self::Local => "local",
            Self::Fallback => "fallback",
            Self::None => "none",
        }
    }
}

/// Writes what the response headers tell about a request's way: names and numbers, no addresses. The path and why a request was not
/// split always; all else with `--debug-headers`.
pub(crate) fn write_trail(trail: &Trail, debug: bool, headers: &mut HeaderMap) {
    headers.insert(HeaderName::from_static("x-kvgate-path"), HeaderValue::from_static(trail.path.as_str()));
    if let Some(reason) = trail.local_because {
        headers.insert(HeaderName::from_static("x-kvgate-local-because"), HeaderValue::from_static(reason));
    }
    if !debug {
        return;
    }
    let mut set = |name: &'static str, value: Option<String>| {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let ms = |leg: Leg| trail.took(leg).map(|took| format!("{:.3}", ms(took)));
    if let Some(last) = trail.tries.last() {
        let (prefill, decode) = (last.prefill_target.as_ref(), last.decode_target.as_ref());
        set("x-kvgate-prefill", prefill.map(|target| target.id().to_string()));
        set("x-kvgate-decode", decode.map(|target| target.id().to_string()));
        set("x-kvgate-prefill-rank", prefill.map(|target| target.rank.to_string()));
        set("x-kvgate-decode-rank", decode.map(|target| target.rank.to_string()));
        set("x-kvgate-transfer", last.transfer_id.as_ref().map(|transfer| transfer.as_str().to_owned()));
        if prefill.is_some() {
            set("x-kvgate-prefill-ms", ms(Leg::Prefill));
        }
    }
    set("x-kvgate-transfer-ms", ms(Leg::Transfer));
    set("x-kvgate-attempts", (trail.attempts > 0).then(|| trail.attempts.to_string()));
    if let Ok(value) = HeaderValue::from_str(&server_timing(trail)) {
        headers.append(HeaderName::from_static("server-timing"), value);
    }
}

/// W3C Server-Timing, in milliseconds; `first-byte` counts from the request's arrival.
fn server_timing(trail: &Trail) -> String {
    let of = |leg: Leg| trail.took(leg).map(|took| (leg.as_str(), took));
    let legs = [Leg::Queue, Leg::Prefill, Leg::Transfer, Leg::Decode].into_iter().filter_map(of);
    let all = legs.chain([("first-byte", trail.now())]);
    all.map(|(name, took)| format!("{name};dur={:.3}", ms(took))).collect::<Vec<_>>().join(", ")
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_hop_or_to_the_router_stays_behind() {
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("traceparent", "00-1-2-3"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("x-data-parallel-rank", "7"),
            ("x-kvgate-prefill-rank", "1"),
            ("x-request-id", "a,b"),
            ("host", "h"),
        ] {
            client.append(name, value.parse().unwrap());
        }
        let names: Vec<_> = toward_engine(&client).keys().map(ToString::to_string).collect();
        assert_eq!(names, ["authorization", "traceparent"]);
    }
}
