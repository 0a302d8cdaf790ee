//! Time of work that returns when the GPU is done.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Medians of works that are done in turn, so that what else goes on meets all of them: first once unmeasured, then `rounds` times.
pub(crate) fn in_turn<const N: usize>(
    rounds: u32,
    mut works: [&mut dyn FnMut() -> Result<Duration>; N],
) -> Result<[Duration; N]> {
    for work in &mut works {
        work()?;
    }
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (work, times) in works.iter_mut().zip(&mut times) {
            times.push(work()?);
        }
    }
    Ok(times.map(|mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }))
}

/// How long something takes.
#[expect(clippy::disallowed_methods, reason = "what is measured is real time")]
pub(crate) fn timed<E: Into<anyhow::Error>>(work: impl FnOnce() -> Result<(), E>) -> Result<Duration> {
    let begun = Instant::now();
    work().map_err(Into::into)?;
    Ok(begun.elapsed())
}

/// Bytes per second, in units of 10⁹.
#[expect(clippy::cast_precision_loss, reason = "figures of a bench")]
pub(crate) fn gb_per_s(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 / time.as_secs_f64() / 1e9 }
}
