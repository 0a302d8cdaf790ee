//! Whom a request may make this sidecar connect to.
//!
//! `remote_host` and `remote_port` of `kv_transfer_params`, and `source_sidecar`, come with requests: without a check whoever may ask could have any
//! address knocked at. What is checked is the address that is connected to, never a name, and a name is looked up once: what it answers for the
//! check is what the connection goes to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use side_channel::Endpoint;
use side_channel::addresses::{Cidr, CidrError, number, split_ports};
use thiserror::Error;
use tokio::net::lookup_host;

/// The most addresses of one name that are looked at.
const MOST_ADDRESSES: usize = 1024;
/// Below it listens what root started: no engine and no sidecar.
const FIRST_PORT: u16 = 1024;

/// Peers that may be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAllow {
    /// Anybody, unchecked and not looked up: for networks that are no real ones.
    Anybody,
    /// No list was given: every address of a pod, from port 1024 up, but none that means this machine or this link.
    Usual {
        /// This machine as well: the sidecar itself listens on loopback only.
        loopback: bool,
    },
    /// A list.
    Only(Vec<Entry>),
}

/// One value of `--peer-allow`: `CIDR`, `CIDR:PORTS`, `NAME:PORTS`; IPv6 in brackets when ports follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    place: Place,
    ports: RangeInclusive<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Net(Cidr),
    /// Whatever addresses the name has at the moment: a headless Service's are those of its pods.
    Name(String),
}

/// Not a value of `--peer-allow`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// Neither a network nor a name.
    #[error(
        "{0:?} is not CIDR[:PORT[-PORT]] or NAME[:PORT[-PORT]], as in 10.0.0.0/8:5600-5700, [fd00::/8]:5600 or prefill.default.svc:5600-5607"
    )]
    NotAnEntry(String),
    /// Bits beyond the length are set: another network may be meant.
    #[error("{0:?} has bits beyond its length: which network is meant?")]
    Beyond(String),
}

/// A peer that must not be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{endpoint} is not among the peers that --peer-allow lets this sidecar connect to")]
pub struct NotAllowed {
    /// As the request has it.
    pub endpoint: Endpoint,
}

/// Why a peer has no address to connect to.
#[derive(Debug, Error)]
pub enum PeerError {
    /// It must not be connected to.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// The name is not known.
    #[error("look up {endpoint}")]
    Unknown {
        /// As the request has it.
        endpoint: Endpoint,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl PeerAllow {
    /// What can be said without looking anything up: an address that is certainly refused.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn certainly(&self, peer: &Endpoint) -> Result<(), NotAllowed> {
        let Some(address) = literal(&peer.host) else { return Ok(()) };
        let names = match self {
            Self::Anybody | Self::Usual { .. } => false,
            Self::Only(list) => list.iter().any(|entry| matches!(entry.place, Place::Name(_))),
        };
        if names || self.has(SocketAddr::new(address, peer.port), &[]) {
            Ok(())
        } else {
            Err(NotAllowed { endpoint: peer.clone() })
        }
    }

    /// Where a peer is to be connected to: its own address, or one of its name's that is allowed.
    ///
    /// # Errors
    /// [`PeerError`]; nothing has been connected to.
    pub async fn resolve(&self, peer: &Endpoint) -> Result<Endpoint, PeerError> {
        if *self == Self::Anybody {
            return Ok(peer.clone());
        }
        let found: Vec<IpAddr> = match literal(&peer.host) {
            Some(address) => vec![address],
            None => addresses(&peer.host, peer.port)
                .await
                .map_err(|source| PeerError::Unknown { endpoint: peer.clone(), source })?,
        };
        let mut named = Vec::new();
        if let Self::Only(list) = self {
            for entry in list.iter().filter(|entry| entry.ports.contains(&peer.port)) {
                if let Place::Name(name) = &entry.place {
                    // A name that is gone allows nobody.
                    named.extend(addresses(name, peer.port).await.unwrap_or_default());
                }
            }
        }
        let allowed = found.into_iter().find(|address| self.has(SocketAddr::new(*address, peer.port), &named));
        let address = allowed.ok_or_else(|| NotAllowed { endpoint: peer.clone() })?;
        Ok(Endpoint::new(address.to_string(), peer.port))
    }

    fn has(&self, peer: SocketAddr, named: &[IpAddr]) -> bool {
        let (address, port) = (peer.ip().to_canonical(), peer.port());
        if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return matches!(self, Self::Anybody);
        }
        match self {
            Self::Anybody => true,
            Self::Usual { loopback } => {
                port >= FIRST_PORT && !is_link_local(address) && (*loopback || !address.is_loopback())
            }
            Self::Only(list) => {
                let ours = |entry: &Entry| entry.ports.contains(&port) && entry.place.has(address);
                named.contains(&address) || list.iter().any(ours)
            }
        }
    }
}

impl Place {
    fn has(&self, peer: IpAddr) -> bool {
        match self {
            Self::Name(_) => false,
            Self::Net(network) => network.covers(peer),
        }
    }

    fn read(text: &str) -> Result<Self, CidrError> {
        match text.parse() {
            Ok(network) => Ok(Self::Net(network)),
            Err(CidrError::NotANetwork) if is_name(text) => Ok(Self::Name(text.to_owned())),
            Err(error) => Err(error),
        }
    }
}

impl FromStr for Entry {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let wrong = || EntryError::NotAnEntry(text.to_owned());
        let (place, ports) = split_ports(text).ok_or_else(wrong)?;
        let ports = ports.map_or(Some(1..=u16::MAX), range).ok_or_else(wrong)?;
        match Place::read(place) {
            Ok(place) => Ok(Self { place, ports }),
            Err(CidrError::NotANetwork) => Err(wrong()),
            Err(CidrError::Beyond) => Err(EntryError::Beyond(text.to_owned())),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Net(network) => write!(f, "{network}")?,
            Place::Name(name) => f.write_str(name)?,
        }
        write!(f, ":{}-{}", self.ports.start(), self.ports.end())
    }
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.len() < 64 && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // What is all digits and dots was meant to be an address.
    let named = text.bytes().any(|byte| byte.is_ascii_alphabetic());
    named && text.len() < 256 && text.trim_end_matches('.').split('.').all(label)
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (number(first)?, number(last)?);
    (first > 0 && first <= last).then_some(first..=last)
}

/// A host that is an address already.
fn literal(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Whoever looks names up may take `127.1` and the like for addresses, so what it says is what counts.
async fn addresses(host: &str, port: u16) -> std::io::Result<Vec<IpAddr>> {
    Ok(lookup_host((host, port)).await?.take(MOST_ADDRESSES).map(|address| address.ip()).collect())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(list: &str) -> PeerAllow {
        PeerAllow::Only(list.split(' ').map(|entry| entry.parse().unwrap()).collect())
    }

    fn at(peer: &str) -> Endpoint {
        peer.parse().unwrap()
    }

    async fn allows(allow: &PeerAllow, peer: &str) -> bool {
        match allow.resolve(&at(peer)).await {
            Ok(resolved) => {
                assert!(allow.certainly(&at(peer)).is_ok(), "{peer}");
                assert!(allow.certainly(&resolved).is_ok(), "{resolved}");
                true
            }
            Err(PeerError::NotAllowed(refused)) => {
                assert_eq!(refused.endpoint, at(peer));
                false
            }
            Err(error @ PeerError::Unknown { .. }) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn a_list_is_networks_with_ports() {
        let allow = only("10.0.0.0/8:5600-5700 192.168.1.7 [fd00::/8]:5600 fd12::/16");
        for peer in [
            "10.0.0.1:5600",
            "10.255.255.255:5700",
            "192.168.1.7:1",
            "[fd01::1]:5600",
            "[fd12::1]:99",
            "[::ffff:10.0.0.1]:5650",
        ] {
            assert!(allows(&allow, peer).await, "{peer}");
        }
        for peer in [
            "10.0.0.1:5599",
            "10.0.0.1:5701",
            "11.0.0.1:5600",
            "192.168.1.8:5600",
            "[fd01::1]:5601",
            "[fe80::1]:5600",
            "[::1]:5600",
        ] {
            assert!(!allows(&allow, peer).await, "{peer}");
            assert!(allow.certainly(&at(peer)).is_err(), "{peer}");
        }
        let everybody = only("0.0.0.0/0 ::/0");
        for peer in ["0.0.0.0:5600", "255.255.255.255:5600", "224.0.0.1:5600", "[::]:5600", "[ff02::1]:5600"] {
            assert!(!allows(&everybody, peer).await, "{peer} is nobody's");
        }
        assert!(allows(&everybody, "169.254.169.254:80").await, "who lists everybody gets everybody");
    }

    #[tokio::test]
    async fn without_a_list_it_is_no_address_of_this_machine_or_link_and_no_low_port() {
        let usual = PeerAllow::Usual { loopback: false };
        for peer in ["10.2.1.187:5600", "[fd00::1]:5600", "203.0.113.9:65535"] {
            assert!(allows(&usual, peer).await, "{peer}");
        }
        for peer in [
            "127.0.0.1:5600",
            "127.9.9.9:5600",
            "[::1]:5600",
            "[::ffff:127.0.0.1]:5600",
            "169.254.169.254:8080",
            "[fe80::1]:5600",
            "10.2.1.187:443",
        ] {
            assert!(!allows(&usual, peer).await, "{peer}");
        }
        assert!(allows(&PeerAllow::Usual { loopback: true }, "127.0.0.1:5600").await);
    }

    #[tokio::test]
    async fn a_name_is_what_it_resolves_to_and_so_is_an_odd_way_to_write_an_address() {
        let usual = PeerAllow::Usual { loopback: false };
        for forged in ["localhost:5600", "127.1:5600", "2130706433:5600", "0x7f000001:5600"] {
            assert!(usual.certainly(&at(forged)).is_ok(), "{forged} has to be looked up");
            match usual.resolve(&at(forged)).await {
                Err(PeerError::NotAllowed(_) | PeerError::Unknown { .. }) => {}
                Ok(endpoint) => panic!("{forged} is {endpoint}"),
            }
        }
        let here = PeerAllow::Usual { loopback: true };
        let resolved = here.resolve(&at("localhost:5600")).await.unwrap();
        assert!(literal(&resolved.host).is_some_and(|address| address.is_loopback()), "{resolved}");
    }

    #[tokio::test]
    async fn a_listed_name_allows_its_addresses() {
        let allow = only("localhost:5600-5601 10.0.0.0/8");
        assert!(allows(&allow, "127.0.0.1:5601").await);
        assert!(allows(&allow, "localhost:5600").await);
        assert!(allows(&allow, "10.0.0.1:1").await);
        assert!(!allows(&allow, "127.0.0.1:5602").await);
        assert!(!allows(&allow, "192.0.2.1:5600").await);
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for (text, shown) in [
            ("10.0.0.0/8:5600-5700", "10.0.0.0/8:5600-5700"),
            ("10.1.2.3", "10.1.2.3/32:1-65535"),
            ("fd00::/8", "[fd00::/8]:1-65535"),
            ("[::1]:7", "[::1/128]:7-7"),
            ("prefill.default.svc:5600", "prefill.default.svc:5600-5600"),
        ] {
            assert_eq!(text.parse::<Entry>().unwrap().to_string(), shown);
            assert_eq!(shown.parse::<Entry>().unwrap(), text.parse().unwrap());
        }
        for text in [
            "",
            ":5600",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.256",
            "fd00::/129",
            "[fd00::/8",
            "[fd00::/8]5600",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "10.0.0.0/8:5-4",
            "10.0.0.0/8:+5",
            "10.0.0.0/8:65536",
            "a b:1",
            "a..b",
            "http://a:1",
        ] {
            assert_eq!(text.parse::<Entry>(), Err(EntryError::NotAnEntry(text.to_owned())), "{text:?}");
        }
        let beyond = "10.0.0.1/8:5600";
        assert_eq!(beyond.parse::<Entry>(), Err(EntryError::Beyond(beyond.to_owned())));
    }
}
