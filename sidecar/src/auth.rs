//! The bearer token that the HTTP API asks for when one is configured.

use std::fmt;
use std::io;
use std::path::Path;

use http::{HeaderMap, HeaderValue, header};
use thiserror::Error;

/// A token is a line of text; a file larger than this is not one. Bytes.
const MAX_TOKEN_FILE: usize = 4096;

/// The secret that clients present as `Authorization: Bearer …`. Never shown, compared in constant time.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

/// Why a token file gives no token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("read the token file {path}")]
    Read {
        /// The file, as given on the command line.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file holds nothing that could be sent in a header.
    #[error("the token file {path} must hold one line of visible ASCII (1 to {MAX_TOKEN_FILE} bytes, no spaces)")]
    Unusable {
        /// The file, as given on the command line.
        path: String,
    },
}

impl Token {
    /// Reads the token of a file, without the line end that editors leave.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let text =
            std::fs::read(path).map_err(|source| TokenError::Read { path: path.display().to_string(), source })?;
        let token = text.trim_ascii();
        if token.is_empty() || token.len() > MAX_TOKEN_FILE || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Unusable { path: path.display().to_string() });
        }
        Ok(Self(token.into()))
    }

    /// The `Authorization` that presents it, for the sidecars of other pods, which have the same.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", &*self.0].concat()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether a request carries this token.
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
        let Some((scheme, presented)) = split_scheme(value.as_bytes()) else { return false };
        scheme.eq_ignore_ascii_case(b"bearer") && same_bytes(&self.0, presented)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
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
    use super::*;
    use std::io::Write as _;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn only_the_very_token_is_admitted() {
        let token = Token::from_file(file(b"open-sesame\n").path()).unwrap();
        assert!(token.admits(&headers("Bearer open-sesame")));
        assert!(token.admits(&headers("bearer  open-sesame")));
        assert!(token.admits(&HeaderMap::from_iter([(header::AUTHORIZATION, token.header().unwrap())])));
        for wrong in
            ["Bearer open-sesamf", "Bearer open-sesam", "Bearer", "Basic open-sesame", "open-sesame", "Bearer "]
        {
            assert!(!token.admits(&headers(wrong)), "{wrong}");
        }
        assert!(!token.admits(&HeaderMap::new()));
    }

    #[test]
    fn a_token_never_shows_in_a_debug_print() {
        let token = Token::from_file(file(b"open-sesame").path()).unwrap();
        assert_eq!(format!("{token:?}"), "Token(hidden)");
    }

    #[test]
    fn a_file_without_a_token_is_refused_by_name() {
        for content in [&b""[..], b"\n\n", b"two words", b"\xff\xfe", &[b'a'; MAX_TOKEN_FILE + 1]] {
            assert!(matches!(Token::from_file(file(content).path()), Err(TokenError::Unusable { .. })));
        }
        let missing = Token::from_file(Path::new("no/such/token")).unwrap_err();
        assert!(missing.to_string().contains("no/such/token"));
    }
}
