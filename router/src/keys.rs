//! Clients' API keys: who may ask, how fast, how much at once, and how urgently.
//!
//! The file holds digests only, so whoever reads it cannot ask. A presented key is digested and looked up by its digest: how
//! long that takes says something about the digest at most, from which nobody gets to a key.

mod bucket;
mod places;

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use parking_lot::RwLock;
use secrets::Followed;
use sha2::{Digest as _, Sha256};

pub(crate) use bucket::Bucket;
pub(crate) use places::InUse;
use places::Places;

/// Where Anthropic's clients put their key.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The most urgent priority.
pub const MOST_URGENT: u8 = 9;

/// A token bucket's terms; each request costs one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back per second.
    pub per_second: NonZeroU32,
    /// Tokens that it holds.
    pub burst: NonZeroU32,
}

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("the file cannot be read")]
    Read(#[from] std::io::Error),
    /// A line that is not understood.
    #[error("line {line}: {why}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        why: LineError,
    },
    /// No line at all: nobody could ask.
    #[error("the file holds no key")]
    Empty,
}

/// What is wrong with one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The first word.
    #[error("it must begin with sha256: and the key's digest, 64 hexadecimal digits (printf %s KEY | sha256sum)")]
    Digest,
    /// Another word.
    #[error(
        "after the digest may stand name=…, rate=N, burst=N, concurrency=N (all at least 1), priority=0…9 and admin"
    )]
    Option,
    /// The same key again.
    #[error("the same digest stands there twice")]
    Twice,
}

/// What a key is held to, as its line says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Terms {
    name: Box<str>,
    admin: bool,
    priority: u8,
    rate: Option<Rate>,
    concurrency: Option<NonZeroU32>,
}

/// One key.
pub struct Key {
    terms: Terms,
    bucket: Option<Bucket>,
    /// Stays the same when the key's line changes.
    in_flight: Places,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.terms.name).finish_non_exhaustive()
    }
}

impl Key {
    fn new(terms: Terms, in_flight: Places) -> Self {
        Self { bucket: terms.rate.map(Bucket::new), terms, in_flight }
    }

    /// The name by which operators know it.
    pub fn name(&self) -> &str {
        &self.terms.name
    }

    /// Whether it may ask what operators ask.
    pub(crate) fn is_admin(&self) -> bool {
        self.terms.admin
    }

    /// How urgent its requests are, and may be.
    pub(crate) fn priority(&self) -> u8 {
        self.terms.priority
    }

    /// Takes one of its places, if it has one.
    pub(crate) fn occupy(&self) -> Option<InUse> {
        self.in_flight.take(self.terms.concurrency)
    }

    /// Takes a token, or says how many seconds from now there is one.
    pub(crate) fn spend(&self) -> Result<(), u32> {
        self.bucket.as_ref().map_or(Ok(()), Bucket::spend)
    }
}

/// All keys, as the file has them now.
#[derive(Debug)]
pub struct Keys(RwLock<HashMap<[u8; 32], Arc<Key>>>);

/// The file of keys, which is read again when it changes.
#[derive(Debug)]
pub(crate) struct KeysFile {
    pub(crate) path: PathBuf,
    pub(crate) keys: Arc<Keys>,
}

impl Followed for KeysFile {
    type Error = KeysError;

    const WHAT: &'static str = "API keys";

    fn paths(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn read_again(&self) -> Result<(), KeysError> {
        self.keys.become_those(Keys::from_file(&self.path)?);
        Ok(())
    }
}

impl Keys {
    pub(crate) fn from_file(path: &Path) -> Result<Self, KeysError> {
        std::fs::read_to_string(path)?.parse()
    }

    /// The key that a request presents.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        let digest = digest(presented(headers)?);
        self.0.read().get(&digest).cloned()
    }

    /// From now on these are the keys. A key whose line has not changed goes on with its bucket, and any key with its requests.
    fn become_those(&self, others: Self) {
        let mut others = others.0.into_inner();
        let mut keys = self.0.write();
        for (digest, new) in &mut others {
            match keys.get(digest) {
                Some(old) if old.terms == new.terms => *new = Arc::clone(old),
                Some(old) => *new = Arc::new(Key::new(new.terms.clone(), old.in_flight.clone())),
                None => {}
            }
        }
        *keys = others;
    }
}

/// What stands in for a key in a request: `Authorization: Bearer …`, or `X-Api-Key`.
pub(crate) fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes).and_then(|value| {
        let (scheme, token) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    });
    bearer.or_else(|| headers.get(X_API_KEY).map(http::HeaderValue::as_bytes))
}

/// What is kept and compared in a secret's place.
pub(crate) fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

impl FromStr for Keys {
    type Err = KeysError;

    fn from_str(text: &str) -> Result<Self, KeysError> {
        let mut keys = HashMap::new();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (digest, key) = key(text, line).map_err(|why| KeysError::Line { line, why })?;
            if keys.insert(digest, Arc::new(key)).is_some() {
                return Err(KeysError::Line { line, why: LineError::Twice });
            }
        }
        if keys.is_empty() { Err(KeysError::Empty) } else { Ok(Self(RwLock::new(keys))) }
    }
}

fn key(text: &str, line: usize) -> Result<([u8; 32], Key), LineError> {
    let mut words = text.split_whitespace();
    let digest = words.next().and_then(|word| hex(word.strip_prefix("sha256:")?)).ok_or(LineError::Digest)?;
    let (mut name, mut rate, mut burst, mut concurrency, mut priority, mut admin) = (None, None, None, None, 0, false);
    for word in words {
        let number = |text: &str| text.parse::<NonZeroU32>().map(Some).map_err(|_| LineError::Option);
        match word.split_once('=') {
            Some(("name", text)) => name = Some(text),
            Some(("rate", text)) => rate = number(text)?,
            Some(("burst", text)) => burst = number(text)?,
            Some(("concurrency", text)) => concurrency = number(text)?,
            Some(("priority", text)) => {
                priority = text.parse().ok().filter(|priority| *priority <= MOST_URGENT).ok_or(LineError::Option)?;
            }
            None if word == "admin" => admin = true,
            Some(_) | None => return Err(LineError::Option),
        }
    }
    if burst.is_some() && rate.is_none() {
        return Err(LineError::Option);
    }
    let rate = rate.map(|per_second| Rate { per_second, burst: burst.unwrap_or(per_second) });
    let name = name.map_or_else(|| format!("line-{line}"), str::to_owned).into();
    Ok((digest, Key::new(Terms { name, admin, priority, rate, concurrency }, Places::default())))
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).filter_map(|pair| Some(pair.first()? << 4 | pair.last()?)).collect();
    if digits.len() == 64 { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests;
