//! The host that others are told: the prefill engine's side channel is reached from the decode pod, so it may not be a name that means
//! "myself" there.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use sidecar::config::RoleArg;
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::line::Line;

const CHECK: &str = "side-channel-host";
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
const FIX: &str = "set VLLM_NIXL_SIDE_CHANNEL_HOST of the prefill engine to the pod's own address (status.podIP), and \
                   --engine-side-channel to the same";

/// Checks the host that the pod's engine, or on D the sidecar, tells to others.
pub(super) async fn line(role: Option<RoleArg>, engine_host: Option<&str>, advertise_host: &str) -> Line {
    match (role, engine_host) {
        // D's sidecar is only told to D's own engine, in the same pod.
        (Some(RoleArg::Decode), _) => decode(advertise_host, resolve(advertise_host).await),
        (_, Some(host)) => prefill(host, resolve(host).await, is_ours),
        (_, None) => Line::skip(CHECK, "neither --engine-side-channel nor --engine was given"),
    }
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    match timeout(RESOLVE_WITHIN, lookup_host((host, 0_u16))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {RESOLVE_WITHIN:?}")),
    }
}

/// An address that this network namespace has can be bound.
fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

fn prefill(host: &str, found: Result<Vec<IpAddr>, String>, is_ours: impl Fn(IpAddr) -> bool) -> Line {
    let found = match found {
        Ok(found) => found,
        Err(error) => return Line::fail(CHECK, format!("{host} does not resolve: {error}"), FIX).with("host", host),
    };
    let line = if found.is_empty() || found.iter().any(IpAddr::is_unspecified) {
        Line::fail(CHECK, format!("{host} is no address that a peer can connect to"), FIX)
    } else if found.iter().any(IpAddr::is_loopback) {
        Line::warn(
            CHECK,
            format!("{host} means every machine itself: a decode pod elsewhere asks its own engine, or nobody"),
            FIX,
        )
    } else if !found.iter().copied().any(is_ours) {
        Line::warn(
            CHECK,
            format!("{host} is not an address of this pod's network"),
            "run doctor in the pod, or correct --engine-side-channel",
        )
    } else {
        Line::ok(CHECK, format!("{host} is this pod's own address, and can be told to others"))
    };
    line.with("host", host)
}

fn decode(host: &str, found: Result<Vec<IpAddr>, String>) -> Line {
    const DECODE_FIX: &str = "leave --advertise-host at 127.0.0.1 when engine and sidecar share a pod";
    let line = match found {
        Err(error) => Line::fail(CHECK, format!("--advertise-host {host} does not resolve: {error}"), DECODE_FIX),
        Ok(found) if found.is_empty() || found.iter().any(IpAddr::is_unspecified) => Line::fail(
            CHECK,
            format!("--advertise-host {host} is no address that the engine can connect to"),
            DECODE_FIX,
        ),
        Ok(_) => Line::ok(CHECK, format!("the decode engine is told {host}, which it reaches in its own pod")),
    };
    line.with("host", host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::line::Status;

    #[test]
    fn what_prefill_tells_must_mean_the_same_elsewhere() {
        let status = |address: &str, ours| prefill("p", Ok(vec![address.parse().unwrap()]), |_| ours).status;
        assert_eq!(status("10.0.0.7", true), Status::Ok);
        assert_eq!(status("10.0.0.7", false), Status::Warn);
        assert_eq!(status("127.0.0.1", true), Status::Warn);
        assert_eq!(status("0.0.0.0", true), Status::Fail);
        assert_eq!(prefill("p", Err("no such name".to_owned()), |_| true).status, Status::Fail);
    }

    #[tokio::test]
    async fn decode_may_say_localhost() {
        assert_eq!(line(Some(RoleArg::Decode), None, "127.0.0.1").await.status, Status::Ok);
        assert_eq!(line(Some(RoleArg::Decode), None, "0.0.0.0").await.status, Status::Fail);
        assert_eq!(line(Some(RoleArg::Prefill), Some("localhost"), "127.0.0.1").await.status, Status::Warn);
        assert_eq!(line(None, None, "127.0.0.1").await.status, Status::Skip);
    }
}
