//! What becomes of a read and of a notification.

use std::time::Duration;

use crate::dice::Dice;

/// How it goes for one host's reads and notifications, in percent of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// Reads that fail, hang, or are refused.
    pub failing: u64,
    /// Bytes take so many times as long.
    pub slow: u64,
    /// Notifications that never arrive, of which the sender hears nothing.
    pub dropped: u64,
    /// Notifications that arrive twice.
    pub doubled: u64,
    /// Notifications that the sender is told of that they could not be sent.
    pub refused: u64,
}

/// A read's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFate {
    /// It ends well after this time.
    Well(Duration),
    /// The post is refused.
    Refused,
    /// It breaks off in the middle; the rest lands late, if it does.
    Breaks { after: Duration, late: Option<Duration> },
    /// It never ends; the rest lands late, if it does.
    Hangs { after: Duration, late: Option<Duration> },
}

/// A notification's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoteFate {
    Arrives(Duration),
    Dropped,
    Doubled(Duration, Duration),
    Refused,
}

pub(super) fn of_read(dice: &mut Dice, weather: Weather, bytes: u64) -> ReadFate {
    let slow = u32::try_from(weather.slow.max(1)).unwrap_or(1);
    let wire = (dice.ms(1, 8) + Duration::from_micros(bytes / 64)) * slow;
    if !dice.percent(weather.failing) {
        return ReadFate::Well(wire);
    }
    let late = dice.percent(60).then(|| dice.ms(1, 3_000));
    match dice.below(5) {
        0 => ReadFate::Refused,
        1 => ReadFate::Hangs { after: wire, late },
        _ => ReadFate::Breaks { after: wire, late },
    }
}

pub(super) fn of_note(dice: &mut Dice, weather: Weather) -> NoteFate {
    let takes = dice.ms(0, 5);
    let roll = dice.below(100);
    if roll < weather.dropped {
        NoteFate::Dropped
    } else if roll < weather.dropped + weather.doubled {
        NoteFate::Doubled(takes, dice.ms(0, 400))
    } else if roll < weather.dropped + weather.doubled + weather.refused {
        NoteFate::Refused
    } else {
        NoteFate::Arrives(takes)
    }
}
