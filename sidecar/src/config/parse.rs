//! Units on the command line: `30s`, `2GiB`, `http://HOST:PORT`.

use std::time::Duration;

use kv::digest::Verify;
use thiserror::Error;

/// Why a value of the command line cannot be read; the flag's name is added by the parser of the command line.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum ValueError {
    /// Not a length of time.
    #[error("a length of time has a number and a unit, as in 500ms, 30s or 2m")]
    Duration,
    /// Not a size.
    #[error("a size is a number of bytes, or a number and KiB, MiB or GiB, as in 512MiB")]
    Size,
    /// Not a way of verification.
    #[error("it is off, full, or sample:K with K from 2 to 4294967295")]
    Verify,
    /// Not an HTTP address.
    #[error("an engine address is http://HOST:PORT or https://HOST:PORT, without a path")]
    EngineUrl,
}

/// A number and `ms`, `s` or `m`.
pub(crate) fn duration(text: &str) -> Result<Duration, ValueError> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    // `parse` alone would take a sign.
    let number: u64 = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
        .ok_or(ValueError::Duration)?;
    match text.strip_prefix(digits) {
        Some("ms") => Some(Duration::from_millis(number)),
        Some("s") => Some(Duration::from_secs(number)),
        Some("m") => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
    .ok_or(ValueError::Duration)
}

/// A number of bytes, or of binary multiples of them.
pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| ValueError::Size)?;
    let unit = match text.strip_prefix(digits) {
        Some("") => 1_u64,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some("GiB") => 1 << 30,
        _ => return Err(ValueError::Size),
    };
    number.checked_mul(unit).ok_or(ValueError::Size)
}

/// `off`, `sample:K` or `full`.
pub(crate) fn verify(text: &str) -> Result<Verify, ValueError> {
    match text {
        "off" => return Ok(Verify::Off),
        "full" => return Ok(Verify::Full),
        _ => {}
    }
    // The first and the last block are always among them.
    let count = text.strip_prefix("sample:").and_then(|count| count.parse().ok()).filter(|count| *count >= 2);
    count.map(Verify::Sample).ok_or(ValueError::Verify)
}

/// The word that [`verify`] reads.
pub(crate) fn verify_word(verify: Verify) -> String {
    match verify {
        Verify::Off => "off".to_owned(),
        Verify::Sample(count) => format!("sample:{count}"),
        Verify::Full => "full".to_owned(),
    }
}

/// `http://HOST:PORT` or `https://HOST:PORT`, an ending slash allowed.
pub(super) fn engine_url(text: &str) -> Result<http::Uri, ValueError> {
    let uri: http::Uri = text.parse().map_err(|_| ValueError::EngineUrl)?;
    let plain = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.path() == "/"
        && uri.query().is_none();
    plain.then_some(uri).ok_or(ValueError::EngineUrl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "30", "s", "-1s", "1.5s", "30 s", "30h", "99999999999999999999s", "9999999999999999999m"] {
            assert_eq!(duration(wrong), Err(ValueError::Duration), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("512MiB"), Ok(512 << 20));
        for wrong in ["", "2GB", "GiB", "-1", "1.5GiB", "99999999999GiB"] {
            assert_eq!(size(wrong), Err(ValueError::Size), "{wrong}");
        }
    }

    #[test]
    fn verification_is_off_of_some_blocks_or_full() {
        for word in ["off", "sample:2", "sample:16", "full"] {
            assert_eq!(verify(word).map(verify_word), Ok(word.to_owned()));
        }
        for wrong in ["", "on", "sample", "sample:", "sample:1", "sample:-3", "sample:99999999999", "Full"] {
            assert_eq!(verify(wrong), Err(ValueError::Verify), "{wrong}");
        }
    }

    #[test]
    fn engines_speak_http_or_https() {
        assert!(engine_url("http://127.0.0.1:8000").is_ok());
        assert!(engine_url("http://pod-0:8000/").is_ok() && engine_url("https://pod-0:8000").is_ok());
        for wrong in ["", "pod-0:8000", "ftp://pod-0:8000", "http://pod-0/v1", "http://", "http://pod-0?x=1"] {
            assert!(engine_url(wrong).is_err(), "{wrong}");
        }
    }
}
