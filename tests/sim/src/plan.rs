//! The faults of a seed, and when.

use std::time::Duration;

use crate::dice::Dice;
use crate::evidence::Mark;
use crate::fabric::Weather;
use crate::hosts::Host;

/// Something that goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing goes between two hosts, or only one way.
    Cut { from: Host, to: Host, both: bool },
    /// Everything between two hosts takes this long.
    Slow { from: Host, to: Host, by: Duration },
    /// A process does nothing: what it says and hears comes when it goes on.
    Stall { host: Host },
    /// A process dies and is started anew; its ports refuse meanwhile.
    Kill { host: Host },
    /// Its machine dies: nobody answers meanwhile.
    Down { host: Host },
    /// It is told to end, and started anew.
    Drain { host: Host },
    /// A host's reads and notifications go badly.
    Storm { host: Host, weather: Weather },
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
}

/// What may die.
const PROCESSES: [Host; 9] = [
    Host::Router,
    Host::PrefillEngine(0),
    Host::PrefillSidecar(0),
    Host::PrefillEngine(1),
    Host::PrefillSidecar(1),
    Host::DecodeEngine(0),
    Host::DecodeSidecar(0),
    Host::DecodeEngine(1),
    Host::DecodeSidecar(1),
];

/// The ways that are used.
const WAYS: [(Host, Host); 16] = [
    (Host::Router, Host::PrefillEngine(0)),
    (Host::Router, Host::PrefillEngine(1)),
    (Host::Router, Host::DecodeEngine(0)),
    (Host::Router, Host::DecodeEngine(1)),
    (Host::Router, Host::PrefillSidecar(0)),
    (Host::Router, Host::PrefillSidecar(1)),
    (Host::Router, Host::DecodeSidecar(0)),
    (Host::Router, Host::DecodeSidecar(1)),
    (Host::DecodeSidecar(0), Host::PrefillEngine(0)),
    (Host::DecodeSidecar(0), Host::PrefillEngine(1)),
    (Host::DecodeSidecar(1), Host::PrefillEngine(0)),
    (Host::DecodeSidecar(1), Host::PrefillEngine(1)),
    (Host::DecodeSidecar(0), Host::DecodeEngine(0)),
    (Host::DecodeSidecar(1), Host::DecodeEngine(1)),
    (Host::PrefillSidecar(0), Host::PrefillEngine(0)),
    (Host::PrefillSidecar(1), Host::PrefillEngine(1)),
];

impl Fault {
    /// Its kind, if it is counted as a whole; storms are counted by what they do.
    pub fn mark(self) -> Option<Mark> {
        match self {
            Self::Cut { .. } => Some(Mark::Partition),
            Self::Slow { .. } => Some(Mark::SlowLink),
            Self::Stall { .. } => Some(Mark::Stall),
            Self::Kill { .. } | Self::Down { .. } => Some(Mark::Crash),
            Self::Drain { .. } => Some(Mark::Drain),
            Self::Storm { .. } => None,
        }
    }

    /// Whose network or process it changes.
    fn touches(self, host: Host) -> bool {
        match self {
            Self::Cut { from, to, .. } | Self::Slow { from, to, .. } => from == host || to == host,
            Self::Stall { host: own }
            | Self::Kill { host: own }
            | Self::Down { host: own }
            | Self::Drain { host: own } => own == host,
            Self::Storm { .. } => false,
        }
    }

    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Storm { host, .. }, Self::Storm { host: theirs, .. }) => host == theirs,
            (Self::Storm { .. }, _) | (_, Self::Storm { .. }) => false,
            _ => Host::ALL.into_iter().any(|host| self.touches(host) && other.touches(host)),
        }
    }
}

/// The faults of a seed within `over`, in the order of their times. No two of them are about the same host at a time.
pub fn events(seed: u64, over: Duration) -> Vec<Event> {
    let mut dice = Dice::new(seed, "faults");
    let mut events: Vec<Event> = Vec::new();
    for _ in 0..3 + dice.below(8) {
        let fault = fault(&mut dice);
        let event =
            Event { at: dice.ms(0, u64::try_from(over.as_millis()).unwrap_or(0)), lasts: dice.ms(50, 5_000), fault };
        let ends = |event: &Event| event.at + event.lasts;
        let meets = |other: &Event| other.fault.meets(fault) && other.at <= ends(&event) && event.at <= ends(other);
        if !events.iter().any(meets) {
            events.push(event);
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

fn fault(dice: &mut Dice) -> Fault {
    let host = *dice.pick(&PROCESSES);
    let (from, to) = *dice.pick(&WAYS);
    let (from, to) = if dice.percent(50) { (from, to) } else { (to, from) };
    match dice.below(14) {
        0 => Fault::Cut { from, to, both: true },
        1 | 2 => Fault::Cut { from, to, both: false },
        3 | 4 => Fault::Slow { from, to, by: dice.ms(20, 900) },
        5 => Fault::Stall { host },
        6 | 7 => Fault::Kill { host },
        8 => Fault::Down { host },
        9 => Fault::Drain { host },
        _ => Fault::Storm { host: storm_host(dice), weather: weather(dice) },
    }
}

/// Who reads or sends notifications.
fn storm_host(dice: &mut Dice) -> Host {
    *dice.pick(&[
        Host::DecodeSidecar(0),
        Host::DecodeSidecar(1),
        Host::DecodeSidecar(0),
        Host::DecodeSidecar(1),
        Host::DecodeEngine(0),
        Host::DecodeEngine(1),
        Host::PrefillSidecar(0),
        Host::PrefillSidecar(1),
    ])
}

fn weather(dice: &mut Dice) -> Weather {
    let mut percent = |most: u64| if dice.percent(50) { dice.below(most + 1) } else { 0 };
    Weather {
        failing: percent(40),
        slow: percent(300),
        dropped: percent(40),
        doubled: percent(30),
        refused: percent(20),
    }
}
