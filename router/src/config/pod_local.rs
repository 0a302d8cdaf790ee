//! The router inside a decode pod, behind a gateway that picks pods.

use std::net::SocketAddr;
use std::str::FromStr;

use clap::{ArgAction, Args};
use http::Uri;
use side_channel::addresses::{Cidr, CidrError, number, split_ports};

use super::discovery::DiscoveryArgs;
use super::{ConfigError, PodUrl, Scheme, range};

/// Where a pod's vLLM answers behind a routing proxy, by llm-d's convention.
const LOCAL_ENGINE: &str = "http://127.0.0.1:8200/";
/// Where its sidecar answers, unless --sidecar-scheme says https.
const LOCAL_SIDECAR: &str = "http://127.0.0.1:7700/";
/// Where prefill pods answer, by the same convention.
const PREFILL_PORT: u16 = 8000;

/// Flags of the router in a decode pod.
#[derive(Clone, Debug, Args)]
pub struct PodLocalArgs {
    /// Run inside a decode pod behind a gateway that picks pods, as llm-d's routing proxy does: decode is this pod's own engine
    /// (--decode, http://127.0.0.1:8200 unless given), prefill whom the gateway names in x-prefiller-host-port, if anybody.
    #[arg(long, env = "KVGATE_POD_LOCAL", action = ArgAction::SetTrue)]
    pub pod_local: bool,

    /// With --pod-local: addresses that the gateway may name for prefill beside the pods that are known by --prefill or discovery,
    /// as 10.2.0.0/16, 10.2.0.0/16:8000 (the port that is meant without one) or 10.2.0.0/16:* (any port).
    #[arg(long, env = "KVGATE_PREFILL_ALLOW", value_name = "CIDR[:PORT]", value_delimiter = ' ', num_args = 1..)]
    pub prefill_allow: Vec<Allowed>,
}

/// Addresses that a gateway may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    network: Cidr,
    /// `None` for any.
    port: Option<u16>,
}

/// Why such addresses cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowedError {
    /// Not an address with a length.
    #[error("{0:?} is not a network like 10.2.0.0/16, 10.2.0.0/16:8000 or [fd00::/8]:8000")]
    NotANetwork(String),
    /// Bits beyond the length are set: another network may be meant.
    #[error("{0:?} has bits beyond its length: which network is meant?")]
    Beyond(String),
}

impl Allowed {
    /// Whether it covers an address.
    pub fn covers(&self, address: SocketAddr) -> bool {
        self.port.is_none_or(|port| port == address.port()) && self.network.covers(address.ip())
    }
}

impl FromStr for Allowed {
    type Err = AllowedError;

    fn from_str(text: &str) -> Result<Self, AllowedError> {
        let not = || AllowedError::NotANetwork(text.to_owned());
        let (network, port) = split_ports(text).ok_or_else(not)?;
        let port = match port {
            None => Some(PREFILL_PORT),
            Some("*") => None,
            Some(port) => Some(number(port).ok_or_else(not)?),
        };
        match network.parse() {
            Ok(network) => Ok(Self { network, port }),
            Err(CidrError::NotANetwork) => Err(not()),
            Err(CidrError::Beyond) => Err(AllowedError::Beyond(text.to_owned())),
        }
    }
}

/// [`PodLocalArgs`], checked.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the flag of the same name")]
pub struct PodLocal {
    pub allow: Vec<Allowed>,
    /// How engines are reached that are known by these addresses alone.
    pub engine_scheme: Scheme,
    /// Their sidecars' port.
    pub sidecar_port: u16,
}

impl PodLocalArgs {
    pub(super) fn check(&self, discovery: &DiscoveryArgs) -> Result<Option<PodLocal>, ConfigError> {
        range(self.pod_local || self.prefill_allow.is_empty(), "--prefill-allow", "given with --pod-local only")?;
        Ok(self.pod_local.then(|| PodLocal {
            allow: self.prefill_allow.clone(),
            engine_scheme: discovery.engine_discovery_scheme,
            sidecar_port: discovery.sidecar_discovery_port,
        }))
    }
}

impl PodLocal {
    /// This pod, when no flag names it.
    pub(super) fn engine() -> PodUrl {
        let (engine, sidecar) = (Uri::from_static(LOCAL_ENGINE), Uri::from_static(LOCAL_SIDECAR));
        PodUrl { engine, sidecar, sidecar_is_named: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_network_covers_its_addresses_on_its_port() {
        for (allowed, address, covered) in [
            ("10.2.0.0/16", "10.2.255.1:8000", true),
            ("10.2.0.0/16", "10.3.0.1:8000", false),
            ("10.2.0.0/16", "10.2.0.1:8001", false),
            ("10.2.0.0/16:8001", "10.2.0.1:8001", true),
            ("10.2.0.0/16:*", "10.2.0.1:1", true),
            ("10.2.0.7", "10.2.0.7:8000", true),
            ("10.2.0.7", "10.2.0.8:8000", false),
            ("0.0.0.0/0", "169.254.169.254:8000", true),
            ("0.0.0.0/0", "169.254.169.254:80", false),
            ("0.0.0.0/0:*", "[fd00::1]:8000", false),
            ("fd00::/8", "[fd12::1]:8000", true),
            ("[fd00::/8]:9000", "[fd12::1]:9000", true),
            ("[fd00::/8]:9000", "[fe80::1]:9000", false),
            ("10.0.0.0/8", "[::ffff:10.1.2.3]:8000", true),
        ] {
            let allowed: Allowed = allowed.parse().unwrap();
            assert_eq!(allowed.covers(address.parse().unwrap()), covered, "{allowed:?} and {address}");
        }
    }

    #[test]
    fn a_network_that_would_be_misread_is_refused() {
        for text in [
            "",
            "10.2/16",
            "10.2.0.0/33",
            "10.2.0.0/16:x",
            "10.2.0.0:65536",
            "name:8000",
            "[fd00::/8",
            "[fd00::/8]8",
            "fd00::/129",
            "/8",
        ] {
            assert_eq!(text.parse::<Allowed>(), Err(AllowedError::NotANetwork(text.to_owned())), "{text}");
        }
        assert!(matches!("10.2.0.1/16".parse::<Allowed>(), Err(AllowedError::Beyond(_))));
    }
}
