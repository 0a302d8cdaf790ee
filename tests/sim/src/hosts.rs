//! Who is there, and which ways between them are open.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// A machine of the simulation. Each process has one of its own, so that it can die alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The router.
    Router,
    /// The engine of a prefill pod.
    PrefillEngine(u8),
    /// Its sidecar.
    PrefillSidecar(u8),
    /// The engine of a decode pod.
    DecodeEngine(u8),
    /// Its sidecar.
    DecodeSidecar(u8),
    /// Where the requests come from.
    Client,
    /// An engine that is never split, never disturbed, and says what every answer should be.
    Reference,
}

impl Host {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Router,
        Self::PrefillEngine(0),
        Self::PrefillSidecar(0),
        Self::PrefillEngine(1),
        Self::PrefillSidecar(1),
        Self::DecodeEngine(0),
        Self::DecodeSidecar(0),
        Self::DecodeEngine(1),
        Self::DecodeSidecar(1),
        Self::Client,
        Self::Reference,
    ];

    /// Its name on the network.
    pub fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::PrefillEngine(0) => "p0",
            Self::PrefillEngine(_) => "p1",
            Self::PrefillSidecar(0) => "p0s",
            Self::PrefillSidecar(_) => "p1s",
            Self::DecodeEngine(0) => "d0",
            Self::DecodeEngine(_) => "d1",
            Self::DecodeSidecar(0) => "d0s",
            Self::DecodeSidecar(_) => "d1s",
            Self::Client => "client",
            Self::Reference => "reference",
        }
    }

    /// The host of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|host| host.name() == name)
    }

    /// Whether it computes prompts for others.
    pub fn is_prefill_engine(self) -> bool {
        matches!(self, Self::PrefillEngine(_))
    }

    /// Whether it stages for a decode engine.
    pub fn is_decode_sidecar(self) -> bool {
        matches!(self, Self::DecodeSidecar(_))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Ways that are cut, for whatever does not see the network itself. Clones are the same ways.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<BTreeSet<(Host, Host)>>>);

impl Links {
    /// Nothing goes from one to the other from now on.
    pub fn cut(&self, from: Host, to: Host) {
        self.0.lock().insert((from, to));
    }

    /// The way is open again.
    pub fn mend(&self, from: Host, to: Host) {
        self.0.lock().remove(&(from, to));
    }

    /// Whether nothing goes from one to the other.
    pub fn is_cut(&self, from: Host, to: Host) -> bool {
        self.0.lock().contains(&(from, to))
    }
}
