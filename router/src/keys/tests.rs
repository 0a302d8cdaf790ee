//! Key files, and what a key is worth.

use std::time::Duration;

use http::HeaderValue;

use super::*;

fn line(key: &str, rest: &str) -> String {
    let hex: String = digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex} {rest}\n")
}

fn with(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
}

#[test]
fn a_key_is_found_by_either_header_and_only_whole() {
    let keys: Keys = format!("# people\n\n{}{}", line("s3cret", "name=ann admin"), line("other", "")).parse().unwrap();
    for headers in
        [with("authorization", "Bearer s3cret"), with("authorization", "bearer  s3cret"), with("x-api-key", "s3cret")]
    {
        let key = keys.find(&headers).unwrap();
        assert_eq!((key.name(), key.is_admin()), ("ann", true));
    }
    assert_eq!(keys.find(&with("x-api-key", "other")).unwrap().name(), "line-4");
    for headers in [
        with("authorization", "s3cret"),
        with("authorization", "Bearer s3cre"),
        with("authorization", "Basic s3cret"),
        HeaderMap::new(),
    ] {
        assert!(keys.find(&headers).is_none(), "{headers:?}");
    }
    assert!(!format!("{keys:?}").contains("s3cret"));
}

#[test]
fn a_line_that_is_not_understood_is_named() {
    for (text, word) in [
        ("s3cret".to_owned(), "line 1: it must begin with sha256:"),
        ("sha256:abc".to_owned(), "line 1: it must begin"),
        (line("a", "rate=0"), "rate=N"),
        (line("a", "burst=4"), "rate=N"),
        (line("a", "priority=10"), "priority=0…9"),
        (line("a", "colour=red"), "priority=0…9"),
        (format!("{}{}", line("a", ""), line("a", "")), "line 2: the same digest"),
        ("# none".to_owned(), "no key"),
    ] {
        let error = text.parse::<Keys>().unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_gives_its_burst_and_then_its_rate() {
    let keys: Keys = line("a", "rate=2 burst=3 concurrency=1").parse().unwrap();
    let key = keys.find(&with("x-api-key", "a")).unwrap();
    for _ in 0..3 {
        key.spend().unwrap();
    }
    assert_eq!(key.spend(), Err(1));
    tokio::time::advance(Duration::from_millis(500)).await;
    key.spend().unwrap();
    assert_eq!(key.spend(), Err(1));
    tokio::time::advance(Duration::from_secs(60)).await;
    for _ in 0..3 {
        key.spend().unwrap();
    }
    assert!(key.spend().is_err(), "a quiet minute fills it, and no more");
}

#[test]
fn a_slow_bucket_says_how_long() {
    let slow = Bucket::new(Rate { per_second: NonZeroU32::MIN, burst: NonZeroU32::MIN });
    slow.spend().unwrap();
    assert_eq!(slow.spend(), Err(1));
}

#[test]
fn a_key_has_so_many_places() {
    let keys: Keys = line("a", "concurrency=2").parse().unwrap();
    let key = keys.find(&with("x-api-key", "a")).unwrap();
    let (first, second) = (key.occupy().unwrap(), key.occupy().unwrap());
    assert!(key.occupy().is_none());
    drop(first);
    assert!(key.occupy().is_some());
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn keys_that_change_keep_what_they_have_used() {
    let text = line("same", "rate=1") + &line("changed", "concurrency=1 rate=1") + &line("gone", "");
    let keys: Keys = text.parse().unwrap();
    let find = |name: &str| keys.find(&with("x-api-key", name));
    find("same").unwrap().spend().unwrap();
    find("changed").unwrap().spend().unwrap();
    let place = find("changed").unwrap().occupy().unwrap();
    keys.become_those(
        (line("same", "rate=1") + &line("changed", "concurrency=1 priority=3") + &line("new", "")).parse().unwrap(),
    );
    assert!(find("gone").is_none() && find("new").is_some());
    assert_eq!(find("same").unwrap().spend(), Err(1), "its bucket is as empty as before");
    let changed = find("changed").unwrap();
    assert_eq!((changed.priority(), changed.spend()), (3, Ok(())));
    assert!(changed.occupy().is_none(), "its request is still there");
    drop(place);
    assert!(changed.occupy().is_some());
}
