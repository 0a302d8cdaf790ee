//! Bearer tokens: one file, a token a line. The first is presented to others, every one of them is accepted.
//!
//! So a token is exchanged without a moment at which somebody is refused: `old` alone, then `old` and `new` everywhere, then `new` and `old`, then
//! `new` alone. Within [`IN_FORCE`](crate::IN_FORCE) after a token's line has gone it is accepted no longer.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use parking_lot::RwLock;
use thiserror::Error;

use crate::follow::Followed;

/// The most tokens of a file.
pub const MAX_TOKENS: usize = 8;
/// The most bytes of a token.
const MAX_TOKEN: usize = 4096;
/// A file that is larger holds something else.
const MAX_FILE: u64 = 64 << 10;

/// The tokens of a file, as it has them now. Never shown, compared in constant time.
pub struct Tokens {
    /// `None` for a token that stands in no file.
    path: Option<PathBuf>,
    now: RwLock<Arc<Few>>,
}

/// At least one token.
struct Few {
    all: Vec<Box<[u8]>>,
    /// Presents the first.
    header: HeaderValue,
}

/// Why a file gives no tokens.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("read the token file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "the token file {} must hold one token, or one a line (at most {MAX_TOKENS}), each of visible ASCII, 1 to {MAX_TOKEN} bytes, no spaces",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
    },
}

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TokenError`], which never holds what the file holds.
    pub fn from_file(path: &Path) -> Result<Arc<Self>, TokenError> {
        let few = read(path)?;
        Ok(Arc::new(Self { path: Some(path.to_owned()), now: RwLock::new(Arc::new(few)) }))
    }

    /// One token that no file holds; `None` for what cannot be one.
    pub fn fixed(token: &str) -> Option<Arc<Self>> {
        let few = Few::of(token.trim().as_bytes())?;
        Some(Arc::new(Self { path: None, now: RwLock::new(Arc::new(few)) }))
    }

    /// The `Authorization` that presents the first.
    pub fn header(&self) -> HeaderValue {
        self.now.read().header.clone()
    }

    /// Whether a request carries one of them as `Authorization: Bearer …`.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
        let Some((scheme, presented)) = split_scheme(value.as_bytes()) else { return false };
        scheme.eq_ignore_ascii_case(b"bearer") && self.has(presented)
    }

    /// Whether this is one of them. How long it takes says nothing about how much of a guess was right, nor of which token.
    pub fn has(&self, presented: &[u8]) -> bool {
        let now = Arc::clone(&self.now.read());
        now.all.iter().fold(false, |found, token| found | same_bytes(token, presented))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Followed for Tokens {
    type Error = TokenError;

    const WHAT: &'static str = "token";

    fn paths(&self) -> Vec<PathBuf> {
        self.path.iter().cloned().collect()
    }

    fn read_again(&self) -> Result<(), TokenError> {
        let Some(path) = &self.path else { return Ok(()) };
        let few = Arc::new(read(path)?);
        *self.now.write() = few;
        Ok(())
    }
}

impl Few {
    fn of(text: &[u8]) -> Option<Self> {
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let all: Vec<Box<[u8]>> = lines.map(Box::from).collect();
        let good = |token: &[u8]| token.len() <= MAX_TOKEN && token.iter().all(u8::is_ascii_graphic);
        if all.len() > MAX_TOKENS || !all.iter().all(|token| good(token)) {
            return None;
        }
        let mut header = HeaderValue::from_bytes(&[b"Bearer ", &**all.first()?].concat()).ok()?;
        header.set_sensitive(true);
        Some(Self { all, header })
    }
}

fn read(path: &Path) -> Result<Few, TokenError> {
    let failed = |source| TokenError::Read { path: path.to_owned(), source };
    let unusable = || TokenError::Unusable { path: path.to_owned() };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    // A device may have no end, and no length.
    let read = file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE) {
        return Err(unusable());
    }
    Few::of(&text).ok_or_else(unusable)
}

fn split_scheme(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    Some((scheme, rest.trim_ascii()))
}

/// Compares without stopping at the first difference, so that answering time does not tell how much of a guess was right.
/// Lengths may be told apart: a token's length is no secret.
fn same_bytes(secret: &[u8], presented: &[u8]) -> bool {
    if secret.len() != presented.len() {
        return false;
    }
    let difference = secret.iter().zip(presented).fold(0_u8, |acc, (a, b)| acc | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::follow::{IN_FORCE, follow};

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn only_the_very_token_is_admitted() {
        let tokens = Tokens::from_file(file(b"open-sesame\n").path()).unwrap();
        assert!(tokens.admits(&headers("Bearer open-sesame")));
        assert!(tokens.admits(&headers("bearer  open-sesame")));
        assert!(tokens.admits(&HeaderMap::from_iter([(header::AUTHORIZATION, tokens.header())])));
        for wrong in
            ["Bearer open-sesam", "Bearer open-sesame!", "Bearer ", "Bearer", "open-sesame", "Basic open-sesame"]
        {
            assert!(!tokens.admits(&headers(wrong)), "{wrong}");
        }
        assert!(!tokens.admits(&HeaderMap::new()));
    }

    #[test]
    fn the_first_is_presented_and_all_are_accepted() {
        let tokens = Tokens::from_file(file(b"new\n\nold\n").path()).unwrap();
        assert_eq!(tokens.header(), "Bearer new");
        assert!(tokens.has(b"new") && tokens.has(b"old") && !tokens.has(b"other") && !tokens.has(b""));
    }

    #[test]
    fn tokens_are_never_shown() {
        let tokens = Tokens::from_file(file(b"open-sesame").path()).unwrap();
        assert!(!format!("{tokens:?} {:?}", tokens.header()).contains("sesame"));
        let fixed = Tokens::fixed(" open-sesame ").unwrap();
        assert_eq!(fixed.header(), "Bearer open-sesame");
        assert!(!format!("{fixed:?}").contains("sesame"));
    }

    #[test]
    fn a_file_that_holds_no_token_is_refused() {
        let long = "x".repeat(MAX_TOKEN + 1);
        let many = "x\n".repeat(MAX_TOKENS + 1);
        let large = vec![b'\n'; usize::try_from(MAX_FILE).unwrap() + 1];
        let wrong: [&[u8]; 7] = [b"", b" \n", b"two words", b"\xff", long.as_bytes(), many.as_bytes(), &large];
        for content in wrong {
            let error = Tokens::from_file(file(content).path()).unwrap_err();
            assert!(matches!(error, TokenError::Unusable { .. }), "{error}");
        }
        let endless = Tokens::from_file(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(endless, TokenError::Unusable { .. }), "{endless}");
        let missing = Tokens::from_file(Path::new("no/such/token")).unwrap_err();
        assert!(matches!(missing, TokenError::Read { .. }) && missing.to_string().contains("no/such/token"));
        assert!(Tokens::fixed("").is_none() && Tokens::fixed("a b").is_none());
    }

    #[tokio::test]
    async fn a_rotated_token_is_taken_and_the_old_one_given_up_once_its_line_has_gone() {
        let file = file(b"old\n");
        let tokens = Tokens::from_file(file.path()).unwrap();
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(follow(Arc::clone(&tokens), stop.clone()));
        std::fs::write(file.path(), "new\nold\n").unwrap();
        let both = async {
            while tokens.header() != "Bearer new" {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(IN_FORCE * 10, both).await.expect("the file is read again");
        assert!(tokens.has(b"old"));
        std::fs::write(file.path(), "new\n").unwrap();
        let gone = async {
            while tokens.has(b"old") {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let since = tokio::time::Instant::now();
        tokio::time::timeout(IN_FORCE * 10, gone).await.expect("the old token is given up");
        println!("an old token was accepted for {:?} after it had gone from the file", since.elapsed());
        // What cannot be used changes nothing.
        std::fs::write(file.path(), "two words\n").unwrap();
        tokio::time::sleep(IN_FORCE).await;
        assert!(tokens.has(b"new"));
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
