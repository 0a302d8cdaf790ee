//! Networks of addresses, and places with ports, as flags write them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// A network, as `10.2.0.0/16`; without a length it is one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    first: IpAddr,
    bits: u8,
}

/// Why a text names no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CidrError {
    /// Not an address with a length.
    #[error("not a network like 10.2.0.0/16 or fd00::/8")]
    NotANetwork,
    /// Bits beyond the length are set: another network may be meant.
    #[error("bits beyond the length are set: which network is meant?")]
    Beyond,
}

impl Cidr {
    /// Whether an address is in it; an IPv4 address that is written as an IPv6 one is what it stands for.
    pub fn covers(&self, address: IpAddr) -> bool {
        masked(address.to_canonical(), self.bits) == Some(self.first)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| CidrError::NotANetwork)?;
        let bits = bits.map_or(Some(width(first)), number).ok_or(CidrError::NotANetwork)?;
        match masked(first, bits) {
            None => Err(CidrError::NotANetwork),
            Some(exact) if exact == first => Ok(Self { first, bits }),
            Some(_) => Err(CidrError::Beyond),
        }
    }
}

/// With its length; an IPv6 network in brackets, so that ports may follow.
impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first {
            IpAddr::V4(first) => write!(f, "{first}/{}", self.bits),
            IpAddr::V6(first) => write!(f, "[{first}/{}]", self.bits),
        }
    }
}

/// `PLACE[:PORTS]` as its two parts. An IPv6 place stands in brackets when ports follow; `None` for brackets that are none.
pub fn split_ports(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (place, rest) = rest.split_once(']')?;
        return if rest.is_empty() { Some((place, None)) } else { Some((place, Some(rest.strip_prefix(':')?))) };
    }
    // More than one colon: an IPv6 place without ports.
    match text.split_once(':') {
        Some((place, ports)) if !ports.contains(':') => Some((place, Some(ports))),
        Some(_) | None => Some((text, None)),
    }
}

/// Digits only: `+5` is no number of a port or of bits.
pub fn number<N: FromStr>(text: &str) -> Option<N> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The first address of the network of so many bits that an address is in; `None` when it has fewer bits.
fn masked(address: IpAddr, bits: u8) -> Option<IpAddr> {
    let beyond = u32::from(width(address).checked_sub(bits)?);
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(beyond).unwrap_or(0)).into()),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(beyond).unwrap_or(0)).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_covers_its_addresses_and_no_other_familys() {
        for (network, address, covered) in [
            ("10.2.0.0/16", "10.2.255.1", true),
            ("10.2.0.0/16", "10.3.0.1", false),
            ("10.2.0.7", "10.2.0.7", true),
            ("10.2.0.7", "10.2.0.8", false),
            ("0.0.0.0/0", "169.254.169.254", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("::/0", "10.2.0.7", false),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
            ("::1", "::1", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ] {
            let network: Cidr = network.parse().unwrap();
            assert_eq!(network.covers(address.parse().unwrap()), covered, "{network} and {address}");
            assert_eq!(network.to_string().trim_matches(['[', ']']).parse(), Ok(network));
        }
    }

    #[test]
    fn what_would_be_misread_is_no_network() {
        for text in ["", "/8", "10.2/16", "10.2.0.0/", "10.2.0.0/33", "10.2.0.0/+8", "10.2.0.256", "fd00::/129", "name"]
        {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::NotANetwork), "{text:?}");
        }
        for text in ["10.2.0.1/16", "fd00::1/8", "0.0.0.1/0"] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError::Beyond), "{text:?}");
        }
    }

    #[test]
    fn ports_follow_a_colon_and_brackets() {
        for (text, parts) in [
            ("10.0.0.0/8", Some(("10.0.0.0/8", None))),
            ("10.0.0.0/8:5600-5607", Some(("10.0.0.0/8", Some("5600-5607")))),
            ("name:*", Some(("name", Some("*")))),
            ("name:", Some(("name", Some("")))),
            ("fd00::/8", Some(("fd00::/8", None))),
            ("[fd00::/8]", Some(("fd00::/8", None))),
            ("[fd00::/8]:80", Some(("fd00::/8", Some("80")))),
            ("[fd00::/8", None),
            ("[fd00::/8]80", None),
        ] {
            assert_eq!(split_ports(text), parts, "{text:?}");
        }
    }
}
