//! How long a rank that has failed a request is left alone before the same request tries it again.

use std::time::Duration;

use crate::config::failure::Backoff;

/// The `nth` wait of a request (from 0), given a random number between 0 and 1.
pub(crate) fn wait(backoff: &Backoff, nth: u32, random: f64) -> Duration {
    let factor = backoff.multiplier.powi(i32::try_from(nth).unwrap_or(i32::MAX));
    let planned = (backoff.initial.as_secs_f64() * factor).min(backoff.most.as_secs_f64());
    let jitter = 1.0 + backoff.jitter * (2.0 * random - 1.0);
    Duration::try_from_secs_f64(planned * jitter).map_or(backoff.most, |wait| wait.min(backoff.most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_vary_by_the_jitter() {
        let ms = Duration::from_millis;
        let backoff = Backoff { initial: ms(100), most: ms(1000), multiplier: 2.0, jitter: 0.5 };
        let planned: Vec<_> = [0, 1, 2, 3, 4, u32::MAX].map(|nth| wait(&backoff, nth, 0.5)).to_vec();
        assert_eq!(planned, [ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)]);
        assert_eq!((wait(&backoff, 0, 0.0), wait(&backoff, 0, 1.0)), (ms(50), ms(150)));
        assert_eq!(wait(&backoff, 9, 1.0), ms(1000), "never longer than the limit");
    }
}
