//! What a gateway's endpoint picker says in headers, by llm-d's names.
//!
//! As llm-d's routing proxy reads them (llm-d-router, `pkg/common/routing/common.go` and `pkg/sidecar/proxy`): a prefiller is
//! `host:port`, with or without `http://`; several stand in one header, by commas, or in several; the older name is believed before the
//! newer one, because pickers that know only the older strip only that from what clients send; nothing of it goes on to an engine.

use std::net::SocketAddr;

use http::HeaderMap;
use http::uri::Authority;

/// Prefillers, in the order of belief.
const PREFILLER: [&str; 2] = ["x-prefiller-host-port", "x-llm-d-prefiller-host-port"];
/// The decode rank, as the port of the proxy that stands for it.
const DECODE_PORT: &str = "x-data-parallel-host-port";
/// What else a picker writes, which has no meaning here and holds addresses.
const OTHERS: [&str; 4] = [
    "x-encoder-hosts-ports",
    "x-llm-d-encoder-hosts-ports",
    "x-kv-cache-source-host-port",
    "x-llm-d-kv-cache-source-host-port",
];
/// Most prefillers of one request that are looked at.
const MOST: usize = 8;

/// What was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Engines that may prefill, the preferred one first; empty when this pod is to do it all. Their scheme is not the gateway's to say.
    pub(super) prefillers: Vec<Authority>,
    /// The port that stands for a decode rank.
    pub(super) decode_port: Option<u16>,
}

/// Why it cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not HOST:PORT")]
pub(super) struct NotAnAddress(&'static str);

/// Reads the headers and takes all of them out.
pub(super) fn take(headers: &mut HeaderMap) -> Result<Said, NotAnAddress> {
    let said = read(headers);
    for name in PREFILLER.into_iter().chain(OTHERS).chain([DECODE_PORT]) {
        headers.remove(name);
    }
    said
}

fn read(headers: &HeaderMap) -> Result<Said, NotAnAddress> {
    let mut said = Said::default();
    for name in PREFILLER {
        let values = || headers.get_all(name).into_iter();
        if values().next().is_none() {
            continue;
        }
        for value in values() {
            let text = value.to_str().map_err(|_| NotAnAddress(name))?;
            for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()).take(MOST - said.prefillers.len()) {
                said.prefillers.push(engine(one).ok_or(NotAnAddress(name))?);
            }
        }
        break;
    }
    if let Some(value) = headers.get(DECODE_PORT) {
        let port = value.to_str().ok().and_then(|text| authority(text.trim())?.port_u16());
        said.decode_port = Some(port.ok_or(NotAnAddress(DECODE_PORT))?);
    }
    Ok(said)
}

/// An address has one form, whatever the picker writes: pods are known by it.
fn engine(text: &str) -> Option<Authority> {
    let authority = authority(text)?;
    match authority.as_str().parse::<SocketAddr>() {
        Ok(address) => SocketAddr::new(address.ip().to_canonical(), address.port()).to_string().parse().ok(),
        Err(_) => Some(authority),
    }
}

/// Host and port and nothing else: no user, no path.
fn authority(text: &str) -> Option<Authority> {
    let authority: Authority = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/').parse().ok()?;
    let plain = !authority.as_str().contains('@') && !authority.host().is_empty() && authority.port_u16().is_some();
    plain.then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers.insert("x-kept", "1".parse().unwrap());
        headers
    }

    fn said(pairs: &[(&'static str, &str)]) -> Result<(Vec<String>, Option<u16>), NotAnAddress> {
        let mut headers = sent(pairs);
        let said = take(&mut headers);
        assert_eq!(headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"], "nothing goes on");
        said.map(|said| (said.prefillers.iter().map(ToString::to_string).collect(), said.decode_port))
    }

    #[test]
    fn prefillers_are_read_as_llm_d_writes_them() {
        let (old, new) = (PREFILLER[0], PREFILLER[1]);
        for (pairs, wanted) in [
            (vec![], vec![]),
            (vec![(old, "")], vec![]),
            (vec![(old, "10.0.0.1:8000")], vec!["10.0.0.1:8000"]),
            (vec![(old, "http://10.0.0.1:8000")], vec!["10.0.0.1:8000"]),
            (vec![(old, "[FD00:0::1]:8000")], vec!["[fd00::1]:8000"]),
            (vec![(old, "[::ffff:10.0.0.1]:8000")], vec!["10.0.0.1:8000"]),
            (vec![(old, "10.0.0.1:8000, p-1:8000")], vec!["10.0.0.1:8000", "p-1:8000"]),
            (vec![(old, "10.0.0.1:8000"), (old, "10.0.0.2:8000")], vec!["10.0.0.1:8000", "10.0.0.2:8000"]),
            (vec![(new, "10.0.0.9:8000")], vec!["10.0.0.9:8000"]),
            (vec![(new, "10.0.0.9:8000"), (old, "10.0.0.1:8000")], vec!["10.0.0.1:8000"]),
        ] {
            assert_eq!(said(&pairs).unwrap().0, wanted, "{pairs:?}");
        }
        let many = vec!["10.0.0.1:8000"; 20].join(",");
        assert_eq!(said(&[(old, &many)]).unwrap().0.len(), MOST);
    }

    #[test]
    fn what_is_no_address_is_refused_and_taken_out_all_the_same() {
        let name = PREFILLER[0];
        for text in [
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:x",
            "a@10.0.0.1:8000",
            "10.0.0.1:8000/v1",
            "https://10.0.0.1:8000",
            "10.0.0.1:99999",
            ":8000",
            "a b:1",
        ] {
            assert_eq!(said(&[(name, text), (OTHERS[0], "e:1")]), Err(NotAnAddress(name)), "{text}");
        }
        assert_eq!(said(&[(DECODE_PORT, "10.0.0.1")]), Err(NotAnAddress(DECODE_PORT)));
    }

    #[test]
    fn a_decode_rank_is_said_by_its_port() {
        assert_eq!(said(&[(DECODE_PORT, "10.0.0.1:8003")]).unwrap().1, Some(8003));
    }
}
