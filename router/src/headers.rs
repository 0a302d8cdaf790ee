//! Which headers go on: the client's to the engines, the engine's to the client, minus what belongs to one hop or to us.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use kv::ids::{DpRank, TransferId};
use vllm_wire::headers::{DP_RANK, REQUEST_ID};

use crate::targets::Target;

/// A client's wish for P's rank.
pub(crate) const PREFILL_RANK: &str = "x-kvgate-prefill-rank";
/// All headers of this prefix are the router's own.
const OWN: &str = "x-kvgate-";
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Made anew for each leg. `accept-encoding`: the router reads P's answer and D's first event.
const PER_LEG: [&str; 6] = ["host", "content-length", "expect", "accept-encoding", DP_RANK, REQUEST_ID];

/// The client's headers, for an engine.
pub(crate) fn toward_engine(client: &HeaderMap) -> HeaderMap {
    kept(client, |name| !PER_LEG.contains(&name))
}

/// An engine's headers, for the client.
pub(crate) fn toward_client(engine: &HeaderMap) -> HeaderMap {
    kept(engine, |name| name != REQUEST_ID)
}

fn kept(headers: &HeaderMap, wanted: impl Fn(&str) -> bool) -> HeaderMap {
    let connection = headers.get_all(header::CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        connection.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let word = name.as_str();
        let hop = HOP_BY_HOP.contains(&word) || named.iter().any(|named| named == word);
        if !hop && !word.starts_with(OWN) && wanted(word) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
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

/// What the response headers tell about a request's way: numbers and names, no addresses.
#[derive(Clone, Debug)]
pub(crate) struct Trail {
    pub(crate) path: Path,
    /// Why a request was not split.
    pub(crate) local_because: Option<&'static str>,
    pub(crate) prefill: Option<(usize, DpRank)>,
    pub(crate) decode: Option<(usize, DpRank)>,
    pub(crate) transfer: Option<TransferId>,
    pub(crate) prefill_ms: Option<f64>,
    pub(crate) transfer_ms: Option<f64>,
    pub(crate) attempts: u32,
}

impl Trail {
    pub(crate) fn new() -> Self {
        Self {
            path: Path::None,
            local_because: None,
            prefill: None,
            decode: None,
            transfer: None,
            prefill_ms: None,
            transfer_ms: None,
            attempts: 0,
        }
    }

    /// Where on a side.
    pub(crate) fn place(target: &Target) -> Option<(usize, DpRank)> {
        Some((target.pod.id.index, target.rank))
    }

    /// Writes the headers.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let mut set = |name: &'static str, value: Option<String>| {
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        let ms = |time: Option<f64>| time.map(|ms| format!("{ms:.3}"));
        set("x-kvgate-path", Some(self.path.as_str().to_owned()));
        set("x-kvgate-local-because", self.local_because.map(str::to_owned));
        set("x-kvgate-prefill-pod", self.prefill.map(|(pod, _)| pod.to_string()));
        set("x-kvgate-prefill-rank", self.prefill.map(|(_, rank)| rank.to_string()));
        set("x-kvgate-decode-pod", self.decode.map(|(pod, _)| pod.to_string()));
        set("x-kvgate-decode-rank", self.decode.map(|(_, rank)| rank.to_string()));
        set("x-kvgate-transfer", self.transfer.as_ref().map(|transfer| transfer.as_str().to_owned()));
        set("x-kvgate-prefill-ms", ms(self.prefill_ms));
        set("x-kvgate-transfer-ms", ms(self.transfer_ms));
        set("x-kvgate-attempts", (self.attempts > 0).then(|| self.attempts.to_string()));
    }
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
